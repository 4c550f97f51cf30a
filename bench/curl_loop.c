/*-------------------------------------------------------------------------
 *
 * curl_loop.c
 *	  The limit of a synchronous call: libcurl in a plain loop.
 *
 * One easy handle, one kept-alive connection, the request that
 * feishu.execute_flow sends for the example of the platform's document.
 * Each answer is collected in memory and must be HTTP 200. Prints requests
 * per second; the first request, which connects, is not counted.
 *
 * Usage: curl_loop BASE_URL COUNT
 *
 * bench/curl_loop.c
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <curl/curl.h>

#define FLOW_PATH \
	"/open-apis/apaas/v1/applications/package_7344545d87__c" \
	"/flows/deleteObject_99c656599f/execute"

static const char *const body =
	"{\"operator\":\"{\\\"_id\\\": 1111, \\\"email\\\": \\\"apaas@bytedance.com\\\"}\","
	"\"params\":\"{\\\"variable_rgrtgqworiginal\\\": {\\\"_id\\\": 5454545}}\","
	"\"is_async\":true}";

typedef struct Answer
{
	char	   *data;
	size_t		len;
	size_t		size;
} Answer;

/* libcurl's write callback: appends to the answer. */
static size_t
answer_append(char *data, size_t one, size_t len, void *arg)
{
	Answer	   *answer = arg;

	(void) one;					/* always 1 */
	if (answer->len + len > answer->size)
	{
		size_t		size = 2 * (answer->len + len);
		char	   *grown = realloc(answer->data, size);

		if (grown == NULL)
			return 0;
		answer->data = grown;
		answer->size = size;
	}
	memcpy(answer->data + answer->len, data, len);
	answer->len += len;
	return len;
}

static void
die(const char *what)
{
	fprintf(stderr, "curl_loop: %s\n", what);
	exit(1);
}

static CURL *
request_create(const char *base_url, struct curl_slist *headers, Answer *answer)
{
	CURL	   *curl = curl_easy_init();
	size_t		len = strlen(base_url) + sizeof(FLOW_PATH);
	char	   *url = malloc(len);

	if (curl == NULL || url == NULL)
		die("out of memory");
	snprintf(url, len, "%s%s", base_url, FLOW_PATH);
	curl_easy_setopt(curl, CURLOPT_URL, url);
	curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
	curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, answer_append);
	curl_easy_setopt(curl, CURLOPT_WRITEDATA, answer);
	free(url);
	return curl;
}

static void
request_perform(CURL *curl, Answer *answer)
{
	long		status = 0;
	CURLcode	rc;

	answer->len = 0;
	rc = curl_easy_perform(curl);
	if (rc != CURLE_OK)
		die(curl_easy_strerror(rc));
	curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
	if (status != 200)
		die("the answer is not HTTP 200");
}

static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

int
main(int argc, char **argv)
{
	struct curl_slist *headers = NULL;
	Answer		answer = {NULL, 0, 0};
	CURL	   *curl;
	double		start;
	int			count;

	if (argc != 3 || (count = atoi(argv[2])) <= 0)
		die("usage: curl_loop BASE_URL COUNT");
	curl_global_init(CURL_GLOBAL_DEFAULT);
	headers = curl_slist_append(headers, "Authorization: Bearer t-g1044ghJRUIJJ5ELPM3ZNMMDKDGSSNCFAHQBL7YZ");
	headers = curl_slist_append(headers, "Content-Type: application/json; charset=utf-8");
	headers = curl_slist_append(headers, "User-Agent: feishu_flow/1.0 PostgreSQL/15.20");
	headers = curl_slist_append(headers, "Accept-Encoding: gzip");
	curl = request_create(argv[1], headers, &answer);

	request_perform(curl, &answer);
	start = now();
	for (int i = 0; i < count; i++)
		request_perform(curl, &answer);
	printf("%.1f\n", count / (now() - start));

	curl_easy_cleanup(curl);
	curl_slist_free_all(headers);
	curl_global_cleanup();
	free(answer.data);
	return 0;
}
