/*-------------------------------------------------------------------------
 *
 * curl_multi.c
 *	  The limit of a dispatcher: libcurl's multi interface in a plain loop.
 *
 * 64 requests are in flight, each the one that the dispatcher sends for a queued
 * flow, with a key of its own.  A handle whose transfer has ended is given the
 * next request at once.  Answers are collected in memory and must be HTTP 200.
 * Prints requests per second.
 *
 * Usage: curl_multi BASE_URL COUNT [CA_FILE]
 *
 * With https, HTTP/2 is used if the server speaks it.
 *
 * bench/curl_multi.c
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <sys/epoll.h>

#include <curl/curl.h>

#define FLOW_PATH \
	"/open-apis/apaas/v1/applications/package_7344545d87__c" \
	"/flows/deleteObject_99c656599f/execute"

#define IN_FLIGHT	64
#define EVENTS		64
#define MAX_AGAIN	16			/* requests made once more */

typedef struct Request
{
	CURL	   *curl;
	char		body[512];
	char		answer[4096];
	size_t		answer_len;
} Request;

static CURLM *multi;
static int	epoll;
static long timer_ms = -1;
static int	started;
static int	count;
static int	again;

static void
die(const char *what)
{
	fprintf(stderr, "curl_multi: %s\n", what);
	exit(1);
}

/* libcurl's write callback: appends to the answer. */
static size_t
answer_append(char *data, size_t one, size_t len, void *arg)
{
	Request    *request = arg;

	(void) one;					/* always 1 */
	if (len > sizeof(request->answer) - request->answer_len)
		return 0;
	memcpy(request->answer + request->answer_len, data, len);
	request->answer_len += len;
	return len;
}

/* libcurl's socket callback; socketp is not NULL once the socket is known. */
static int
on_socket(CURL *curl, curl_socket_t fd, int what, void *userp, void *socketp)
{
	struct epoll_event event = {0};

	(void) curl;
	(void) userp;
	event.data.fd = fd;
	if (what == CURL_POLL_REMOVE)
	{
		epoll_ctl(epoll, EPOLL_CTL_DEL, fd, &event);
		return 0;
	}
	event.events = (what & CURL_POLL_IN ? EPOLLIN : 0) | (what & CURL_POLL_OUT ? EPOLLOUT : 0);
	if (epoll_ctl(epoll, socketp ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event) != 0)
		die("epoll_ctl failed");
	curl_multi_assign(multi, fd, &epoll);
	return 0;
}

/* libcurl's timer callback. */
static int
on_timer(CURLM *handle, long timeout_ms, void *userp)
{
	(void) handle;
	(void) userp;
	timer_ms = timeout_ms;
	return 0;
}

static void
request_create(Request *request, const char *url, const char *ca_file,
			   struct curl_slist *headers)
{
	CURL	   *curl = curl_easy_init();

	if (curl == NULL)
		die("out of memory");
	request->curl = curl;
	curl_easy_setopt(curl, CURLOPT_URL, url);
	curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, answer_append);
	curl_easy_setopt(curl, CURLOPT_WRITEDATA, request);
	curl_easy_setopt(curl, CURLOPT_PRIVATE, request);
	curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_2TLS);
	curl_easy_setopt(curl, CURLOPT_PIPEWAIT, 1L);
	if (ca_file != NULL)
		curl_easy_setopt(curl, CURLOPT_CAINFO, ca_file);
}

static void
request_start(Request *request)
{
	int			len = snprintf(request->body, sizeof(request->body),
							   "{\"idempotent_key\":\"7b0a4d5e-0000-4000-8000-%012d\","
							   "\"operator\":\"{\\\"_id\\\": 1111, \\\"email\\\": \\\"apaas@bytedance.com\\\"}\","
							   "\"params\":\"{\\\"variable_rgrtgqworiginal\\\": {\\\"_id\\\": 5454545}}\","
							   "\"is_async\":true}", started++);

	request->answer_len = 0;
	curl_easy_setopt(request->curl, CURLOPT_POSTFIELDSIZE, (long) len);
	curl_easy_setopt(request->curl, CURLOPT_POSTFIELDS, request->body);
	if (curl_multi_add_handle(multi, request->curl) != CURLM_OK)
		die("could not add a transfer");
}

/* Take the transfers that have ended and start others; returns how many ended. */
static int
collect(void)
{
	CURLMsg    *message;
	int			left;
	int			ended = 0;

	while ((message = curl_multi_info_read(multi, &left)) != NULL)
	{
		CURL	   *curl = message->easy_handle;
		Request    *request;
		long		status = 0;

		if (message->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(curl, CURLINFO_PRIVATE, &request);
		if (message->data.result == CURLE_HTTP2_STREAM && again++ < MAX_AGAIN)
		{
			/* libcurl 7.88 loses a request over HTTP/2 now and then */
			curl_multi_remove_handle(multi, curl);
			started--;
			request_start(request);
			continue;
		}
		if (message->data.result != CURLE_OK)
			die(curl_easy_strerror(message->data.result));
		curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
		if (status != 200)
			die("the answer is not HTTP 200");
		curl_multi_remove_handle(multi, curl);
		ended++;
		if (started < count)
			request_start(request);
	}
	return ended;
}

/* Run until all requests have ended. */
static void
run(void)
{
	int			ended = 0;

	while (ended < count)
	{
		struct epoll_event events[EVENTS];
		int			num = 0;
		int			running;

		if (timer_ms != 0)
			num = epoll_wait(epoll, events, EVENTS, (int) timer_ms);
		if (num == 0)
		{
			timer_ms = -1;
			curl_multi_socket_action(multi, CURL_SOCKET_TIMEOUT, 0, &running);
		}
		for (int i = 0; i < num; i++)
			curl_multi_socket_action(multi, events[i].data.fd,
									 (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR) ? CURL_CSELECT_IN : 0) |
									 (events[i].events & EPOLLOUT ? CURL_CSELECT_OUT : 0), &running);
		ended += collect();
	}
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
	static Request requests[IN_FLIGHT];
	struct curl_slist *headers = NULL;
	char		url[1024];
	double		start;

	if (argc < 3 || argc > 4 || (count = atoi(argv[2])) < IN_FLIGHT)
		die("usage: curl_multi BASE_URL COUNT [CA_FILE], COUNT at least 64");
	curl_global_init(CURL_GLOBAL_DEFAULT);
	multi = curl_multi_init();
	epoll = epoll_create1(0);
	curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, on_socket);
	curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, on_timer);
	curl_multi_setopt(multi, CURLMOPT_MAX_HOST_CONNECTIONS, (long) IN_FLIGHT);
	curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, (long) IN_FLIGHT);
	headers = curl_slist_append(headers, "Authorization: Bearer t-g1044ghJRUIJJ5ELPM3ZNMMDKDGSSNCFAHQBL7YZ");
	headers = curl_slist_append(headers, "Content-Type: application/json; charset=utf-8");
	headers = curl_slist_append(headers, "User-Agent: feishu_flow/1.0 PostgreSQL/15.0");
	snprintf(url, sizeof(url), "%s" FLOW_PATH, argv[1]);

	start = now();
	for (int i = 0; i < IN_FLIGHT; i++)
	{
		request_create(&requests[i], url, argc > 3 ? argv[3] : NULL, headers);
		request_start(&requests[i]);
	}
	run();
	printf("%.1f\n", count / (now() - start));
	return 0;
}
