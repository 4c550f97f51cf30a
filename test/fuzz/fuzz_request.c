/*-------------------------------------------------------------------------
 *
 * fuzz_request.c
 *	  One input of the fuzz that is a request: what is written says what the
 *	  arguments say.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * test/fuzz/fuzz_request.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"

#include "base/compat.h"
#include "fuzz_internal.h"
#include "wire/wire.h"
#include "wire/wire_check.h"
#include "wire/wire_internal.h"

static char *
string_member(JsonbContainer *object, const char *key)
{
	JsonbValue	value;

	if (!fuzz_find_member(object, key, &value) || value.type != jbvString)
		return NULL;
	return pnstrdup(value.val.string.val, value.val.string.len);
}

static Jsonb *
json_member(JsonbContainer *object, const char *key)
{
	JsonbValue	value;

	return fuzz_find_member(object, key, &value) ? JsonbValueToJsonb(&value) : NULL;
}

/* A member that is JSON in a string, which is how the platform wants it. */
static void
check_json_string(JsonbContainer *object, const char *key, Jsonb *expected, bool same)
{
	char	   *text = string_member(object, key);
	Jsonb	   *value;

	CHECK((text != NULL) == (expected != NULL));
	if (expected == NULL)
		return;
	CHECK(feishu_jsonb_from_cstring(text, &value));
	if (same)
		CHECK(fuzz_same_jsonb(value, expected));
}

/* A URL's path, or a form: nothing but these characters. */
static void
check_escaped(const char *text, const char *also)
{
	for (const char *p = text; *p != '\0'; p++)
		CHECK((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') ||
			  (*p >= '0' && *p <= '9') || strchr("-._~%", *p) || strchr(also, *p));
}

static void
write_request(FlowRequest *request, StringInfo url, StringInfo body,
			  StringInfo legacy, StringInfo form)
{
	const char *type;

	request_check(request);
	appendStringInfoString(url, wire_execute_url("https://open.feishu.cn//", request));
	wire_write_request(request, body);
	wire_write_token_request(false, request->namespace_name, request->flow_id, legacy, &type);
	wire_write_token_request(true, request->namespace_name, request->flow_id, form, &type);
}

void
fuzz_check_request(const FuzzInput *input)
{
	MemoryContext context = CurrentMemoryContext;
	FlowRequest request = {0};
	StringInfoData url;
	StringInfoData body;
	StringInfoData legacy;
	StringInfoData form;
	WireJson	json;
	Jsonb	   *async;
	JsonbValue	value;
	Jsonb	   *written;
	volatile bool done = false;

	wirejson_read_object(input->body, input->body_len, &json);
	if (json.value == NULL)
		return;
	request.namespace_name = string_member(&json.value->root, "namespace");
	request.flow_id = string_member(&json.value->root, "flow_id");
	request.idempotent_key = string_member(&json.value->root, "idempotent_key");
	request.operator_id = json_member(&json.value->root, "operator");
	request.params = json_member(&json.value->root, "params");
	request.loop_masks = json_member(&json.value->root, "loop_masks");
	async = json_member(&json.value->root, "is_async");
	request.is_async = async != NULL;

	initStringInfo(&url);
	initStringInfo(&body);
	initStringInfo(&legacy);
	initStringInfo(&form);
	PG_TRY();
	{
		write_request(&request, &url, &body, &legacy, &form);
		done = true;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (error->sqlerrcode != ERRCODE_INVALID_PARAMETER_VALUE &&
			error->sqlerrcode != ERRCODE_CHARACTER_NOT_IN_REPERTOIRE &&
			error->sqlerrcode != ERRCODE_UNTRANSLATABLE_CHARACTER)
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();
	if (!done)
		return;

	check_escaped(url.data, "/:");
	CHECK(strncmp(url.data, "https://open.feishu.cn/open-apis/", 33) == 0);
	check_escaped(form.data, "=&");

	/* the wire is UTF-8, so what is written is read as that */
	CHECK(pg_verify_mbstr(PG_UTF8, body.data, body.len, true));
	CHECK(pg_verify_mbstr(PG_UTF8, legacy.data, legacy.len, true));
	SetDatabaseEncoding(PG_UTF8);
	CHECK(feishu_jsonb_from_cstring(legacy.data, &written));
	CHECK(feishu_jsonb_from_cstring(body.data, &written));
	CHECK(JB_ROOT_IS_OBJECT(written));
	check_json_string(&written->root, "operator", request.operator_id, input->encoding == PG_UTF8);
	check_json_string(&written->root, "params", request.params, input->encoding == PG_UTF8);
	CHECK(fuzz_find_member(&written->root, "is_async", &value) == request.is_async);
	CHECK(fuzz_find_member(&written->root, "loop_masks", &value) == (request.loop_masks != NULL));
	if (input->encoding == PG_UTF8)
	{
		CHECK(fuzz_same_text(request.idempotent_key, string_member(&written->root, "idempotent_key")));
		CHECK(fuzz_same_jsonb(request.loop_masks, json_member(&written->root, "loop_masks")));
	}
}
