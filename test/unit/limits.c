/*-------------------------------------------------------------------------
 *
 * limits.c
 *	  Tests of src/gate.c, src/breaker.c and src/rate.c, which are functions of the
 *	  state of an app and the time.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * test/unit/limits.c
 *
 *-------------------------------------------------------------------------
 */
#include "unit.h"

#include "app/gate.h"

/* What those files have from others. */
int			MyProcPid = 4711;
int			feishu_guc_retry_base_delay = 1000;
int			feishu_guc_retry_max_delay = 300 * 1000;
double		feishu_guc_rate_share = 1.0;

extern void test_rate(void);
extern void test_breaker(void);
extern void test_gate(void);

const char *
named(const char *format, const char *what)
{
	static char name[200];

	snprintf(name, sizeof(name), format, what);
	return name;
}

#ifdef USE_ASSERT_CHECKING
void
#if PG_VERSION_NUM >= 160000
ExceptionalCondition(const char *condition, const char *file, int line)
#else
ExceptionalCondition(const char *condition, const char *kind, const char *file, int line)
#endif
{
	printf("not ok - %s at %s:%d\n", condition, file, line);
	exit(1);
}
#endif

int
main(void)
{
	test_rate();
	test_breaker();
	test_gate();
	return 0;
}
