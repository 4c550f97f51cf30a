/*-------------------------------------------------------------------------
 *
 * src/call/sandbox.c
 *	  Answers that are made up, of servers that are sandboxes.
 *
 * A call of a sandbox is one like any other up to where it would ask for a token, and
 * again from where its answer is read: what is in between, and needs a network, is
 * here.  There is no secret, for server.c has read none.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/sandbox_setting.h"
#include "call/call_internal.h"
#include "wire/wire.h"

/* The example in the platform's document of this API. */
static const char example[] =
"{"
"\"code\": 0, "
"\"data\": {"
"\"code\": \"\", "
"\"error_msg\": \"\", "
"\"execution_id\": \"1816970091484211\", "
"\"out_params\": \"[{\\\"api_name\\\":\\\"_flowExecutionID\\\",\\\"value\\\":1816970091484211}]\", "
"\"status\": \"end\""
"}, "
"\"msg\": \"success\""
"}";

/*
 * What stands for the result of a transfer, in the current memory context.  Needs a
 * transaction.
 */
void
sandbox_answer(const FlowServer *server, size_t max_response, HttpResult *result)
{
	const char *body = NULL;
	int			http_status = 200;

	if (server->sandbox_response != NULL)
		(void) sandbox_setting_split(server->sandbox_response, &http_status, &body);
	memset(result, 0, sizeof(HttpResult));
	result->request_sent = true;
	result->reset_seconds = -1;
	result->http_status = http_status;
	result->body = body != NULL ? wire_to_utf8(body) : pstrdup(example);
	result->body_len = strlen(result->body);
	if (result->body_len == 0)
		result->body = NULL;
	result->outcome = result->body_len > max_response ? HTTP_TOO_LARGE : HTTP_ANSWERED;
}
