/*
 * To be preloaded (LD_PRELOAD): libcurl as it is elsewhere. OTHER_CAPATH and OTHER_CAINFO: where it says that the
 * system's authorities are. OTHER_VERSION: another version, say 7.79.1, which knows no option that came later with
 * 7.80, or 8.7.1, which does not count the bytes of requests.
 *
 *   cc -shared -fPIC -o other_libcurl.so other_libcurl.c -ldl
 */
#define _GNU_SOURCE
#include <curl/curl.h>
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#undef curl_easy_getinfo
#undef curl_easy_setopt

/* The first option of 7.80. */
#define FIRST_UNKNOWN	20312

/* The version that it is to have; 0: its own. */
static unsigned int
other_version(void)
{
	const char *version = getenv("OTHER_VERSION");
	unsigned int major, minor, patch;

	if (version == NULL || sscanf(version, "%u.%u.%u", &major, &minor, &patch) != 3)
		return 0;
	return major << 16 | minor << 8 | patch;
}

static void *
real(const char *name)
{
	return dlsym(dlopen("libcurl.so.4", RTLD_LAZY | RTLD_NOLOAD), name);
}

curl_version_info_data *
curl_version_info(CURLversion age)
{
	static curl_version_info_data info;

	info = *((curl_version_info_data *(*) (CURLversion)) real("curl_version_info")) (age);
	if (getenv("OTHER_CAPATH") != NULL)
		info.capath = getenv("OTHER_CAPATH");
	if (getenv("OTHER_CAINFO") != NULL)
		info.cainfo = getenv("OTHER_CAINFO");
	if (other_version() != 0)
	{
		info.version = getenv("OTHER_VERSION");
		info.version_num = other_version();
	}
	return &info;
}

CURLcode
curl_easy_setopt(CURL *easy, CURLoption option, ...)
{
	static CURLcode (*set) (CURL *, CURLoption, ...) = NULL;
	va_list		args;
	void	   *value;

	va_start(args, option);
	value = va_arg(args, void *);	/* as wide as a long and a curl_off_t */
	va_end(args);
	if (other_version() != 0 && other_version() < 0x075000 && option % 10000 >= FIRST_UNKNOWN % 10000)
		return CURLE_UNKNOWN_OPTION;
	if (set == NULL)
		set = (CURLcode (*) (CURL *, CURLoption, ...)) real("curl_easy_setopt");
	return set(easy, option, value);
}

CURLcode
curl_easy_getinfo(CURL *easy, CURLINFO info, ...)
{
	static CURLcode (*get) (CURL *, CURLINFO, ...) = NULL;
	va_list		args;
	void	   *value;

	va_start(args, info);
	value = va_arg(args, void *);
	va_end(args);
	if (info == CURLINFO_REQUEST_SIZE && other_version() >> 8 == 0x0807)
	{
		*(long *) value = 0;
		return CURLE_OK;
	}
	if (get == NULL)
		get = (CURLcode (*) (CURL *, CURLINFO, ...)) real("curl_easy_getinfo");
	return get(easy, info, value);
}
