/*-------------------------------------------------------------------------
 *
 * tokens.c
 *	  Tests of src/app/token.c, token_ask.c and apps.c: the cache of tokens, as
 *	  functions of its state and the time.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * test/unit/tokens.c
 *
 *-------------------------------------------------------------------------
 */
#include "unit.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/pg_shmem.h"
#include "storage/shmem.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "app/apps_internal.h"
#include "base/wakeup.h"


/* ---------- What those files have from others ---------- */

int			MyProcPid = 4711;
double		feishu_guc_rate_share = 1.0;
int			feishu_guc_max_apps = 5;
int			feishu_guc_retry_base_delay = 1000;
int			feishu_guc_retry_max_delay = 300 * 1000;
Oid			MyDatabaseId = 5;
MemoryContext TopMemoryContext = NULL;
MemoryContext CurrentMemoryContext = NULL;
LWLockPadded *MainLWLockArray;

static TimestampTz now = EPOCH;
static LWLockPadded locks[200];
static int	locked = 0;
static int	wakes = 0;
static int	losses = 0;
static pg_on_exit_callback at_exit = NULL;

const char *
feishu_text_domain(void)
{
	return NULL;
}

void
limiter_restore(void)
{
}

TimestampTz
GetCurrentTimestamp(void)
{
	return now;
}

bool
LWLockAcquire(LWLock *lock, LWLockMode mode)
{
	is(locked++, 0, "a lock is taken once");
	return true;
}

void
LWLockRelease(LWLock *lock)
{
	locked--;
}

LWLockPadded *
GetNamedLWLockTranche(const char *name)
{
	return &locks[100];
}

void *
ShmemInitStruct(const char *name, Size size, bool *found)
{
	*found = false;
	return calloc(1, size);
}

void
wakeup_broadcast(void)
{
	is(locked, 0, "others are woken without a lock");
	wakes++;
}

void
on_shmem_exit(pg_on_exit_callback function, Datum arg)
{
	at_exit = function;
}

void *
MemoryContextAlloc(MemoryContext context, Size size)
{
	is(locked, 0, "memory is got without a lock");
	return malloc(size);
}

void *
MemoryContextAllocZero(MemoryContext context, Size size)
{
	return calloc(1, size);
}

void
pfree(void *pointer)
{
	free(pointer);
}

Size
add_size(Size one, Size other)
{
	return one + other;
}

Size
mul_size(Size one, Size other)
{
	return one * other;
}

size_t
strlcpy(char *to, const char *from, size_t size)
{
	snprintf(to, size, "%s", from);
	return strlen(from);
}

int
s_lock(volatile slock_t *lock, const char *file, int line, const char *func)
{
	is(0, 1, "no spinlock is held for long");
	return 0;
}

void
RequestAddinShmemSpace(Size size)
{
}

void
RequestNamedLWLockTranche(const char *name, int num)
{
}

void
GetHugePageSize(Size *size, int *flags)
{
	*size = 0;
}

bool
errstart(int elevel, const char *domain)
{
	is(locked, 0, "the log is told without a lock");
	return true;
}

void
errfinish(const char *file, int line, const char *function)
{
}

int
errmsg(const char *format, ...)
{
	losses += strstr(format, "has dropped the access token") != NULL;
	return 0;
}

int
errhint(const char *format, ...)
{
	return 0;
}

int
errhidestmt(bool hide)
{
	return 0;
}

int
errhidecontext(bool hide)
{
	return 0;
}

bool
TimestampDifferenceExceeds(TimestampTz start, TimestampTz end, int ms)
{
	return end - start >= MS(ms);
}

bool
errstart_cold(int elevel, const char *domain)
{
	return false;
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


/* ---------- Callers ---------- */

#define CALLERS		12

static TokenLease callers[CALLERS];
static TokenFailure failure;

/* A caller of an app, which a payer pays for. */
static TokenLease *
caller(int n, int app, Oid payer)
{
	AppKey		key;

	memset(&key, app, sizeof(key));
	if (callers[n].fetching)
		token_cache_abandon(&callers[n]);
	token_lease_init(&callers[n], &key, payer, NULL);
	return &callers[n];
}

/* What a caller with a minute gets. */
static int
gets(TokenLease *lease)
{
	return token_cache_acquire(lease, now + SECONDS(60), &failure);
}

static void
has(TokenLease *lease, const char *token, const char *name)
{
	is(strcmp(lease->token, token), 0, name);
}

/* An empty cache, and the callers 0 to 3 of one app. */
static void
begin(void)
{
	for (int i = 0; i < CALLERS; i++)
		token_cache_abandon(&callers[i]);
	now = EPOCH;
	apps_startup_shmem();
	for (int i = 0; i < 4; i++)
		(void) caller(i, 1, 10);
	wakes = losses = 0;
}

#define A	(&callers[0])
#define B	(&callers[1])
#define C	(&callers[2])

static void
test_life(void)
{
	begin();
	is(token_cache_is_shared(), 1, "the cache is shared");
	is(gets(A), TOKEN_FETCH, "without a token the first fetches one");
	is(gets(B), TOKEN_WAIT, "... the second waits");
	is(B->retry_at - now, SECONDS(3), "... for three seconds");
	is(wakes, 0, "... nobody is woken");
	now += SECONDS(1);
	token_cache_store(A, "first", 7200, EPOCH);
	has(A, "first", "who has fetched it has it");
	is(A->fetching, 0, "... and no duty any more");
	is(wakes, 1, "... those who wait are woken");
	is(gets(B), TOKEN_READY, "... and have it");
	has(B, "first", "... the same");
	is(B->generation, A->generation, "... the very same");
	is(B->unproven + A->unproven, 0, "... that was never refused");
	now = EPOCH + SECONDS(7200 - 1500) - 1;
	is(gets(A), TOKEN_READY, "it is good until 25 minutes before its end");
	now++;
	is(gets(A), TOKEN_READY_REFRESH, "then one refreshes it");
	has(A, "first", "... who has it still");
	is(A->asked_in_vain, 0, "... and nobody was asked to");
	is(gets(B), TOKEN_READY, "... one alone");
	now += SECONDS(10) - 1;
	is(gets(B), TOKEN_READY, "... who has ten seconds for it");
	now++;
	is(gets(B), TOKEN_READY_REFRESH, "... then another does");
	token_cache_store(B, "second", 1e9, now);
	is(gets(C), TOKEN_READY, "the new one is there");
	has(C, "second", "... for all");
	now += SECONDS(7200 - 1500) - 1;
	is(gets(C), TOKEN_READY, "no token is taken to live for more than two hours");
	now++;
	is(gets(C), TOKEN_READY_REFRESH, "... whatever is said of it");
	now += SECONDS(1500);
	is(gets(B), TOKEN_FETCH, "one that has expired is fetched, though a refresh is under way");

	begin();
	(void) gets(A);
	token_cache_store(A, "short", 100, EPOCH);
	now = EPOCH + SECONDS(75) - 1;
	is(gets(B), TOKEN_READY, "a token of 100 seconds is good for three quarters of it");
	now++;
	is(gets(B), TOKEN_READY_REFRESH, "... then it is refreshed");
	token_cache_abandon(B);
	is(gets(C), TOKEN_READY_REFRESH, "... by the next, if that is given up");
	now = EPOCH + SECONDS(100) - 1;
	is(gets(A), TOKEN_READY_REFRESH, "... and good to its last moment");
	now++;
	is(gets(A), TOKEN_FETCH, "... not longer");
	token_cache_store(A, "none", 0, now);
	has(A, "none", "one without a life is its caller's");
	is(gets(B), TOKEN_FETCH, "... and nobody else's");
}

static void
test_fetches(void)
{
	char		longest[TOKEN_MAX_LENGTH + 1];
	TokenFailure ours = {.outcome = HTTP_NO_CONNECTION, .http_status = 7};

	/* one that hangs */
	begin();
	is(token_cache_acquire(A, now + SECONDS(1), &failure), TOKEN_FETCH, "a fetch of a caller with a second");
	is(gets(B), TOKEN_WAIT, "... is waited for");
	is(B->retry_at - now, SECONDS(1), "... for that second");
	now += SECONDS(1);
	is(gets(B), TOKEN_FETCH, "then another takes over");
	is(gets(C), TOKEN_WAIT, "... one alone");
	token_cache_store(A, "late", 7200, now);
	is(gets(C), TOKEN_READY, "what comes late is welcome while there is none");
	token_cache_store(B, "later", 7200, now);
	is(gets(C), TOKEN_READY, "... and the other's, too");
	has(C, "later", "... which was asked for in its stead");
	begin();
	(void) gets(A);
	now += SECONDS(3);
	(void) gets(B);
	token_cache_store(B, "quick", 7200, now);
	token_cache_store(A, "late", 7200, now);
	has(A, "late", "what comes too late is its caller's");
	(void) gets(C);
	has(C, "quick", "... and nobody else's");

	/* failures */
	begin();
	(void) gets(A);
	(void) gets(B);
	token_cache_fail(A, &ours);
	is(wakes, 1, "a failure wakes those who wait");
	is(gets(B), TOKEN_FAILED, "... who share it");
	is(failure.http_status, 7, "... as it is");
	is(gets(B), TOKEN_FETCH, "... once");
	is(gets(C), TOKEN_WAIT, "who comes later");
	token_cache_fail(B, NULL);
	is(gets(C), TOKEN_FETCH, "... tries by himself if it is not to be shared");
	token_cache_abandon(C);
	token_cache_abandon(C);
	is(wakes, 3, "a fetch that is given up wakes others, once");
	is(gets(B), TOKEN_FETCH, "... who try");
	token_cache_store(B, "good", 100, now);
	now += SECONDS(75);
	is(gets(C), TOKEN_READY_REFRESH, "a refresh");
	token_cache_fail(C, &ours);
	is(gets(A), TOKEN_READY, "... that fails is tried again");
	now += SECONDS(25) - 1;
	is(gets(A), TOKEN_READY, "... not soon");
	(void) caller(3, 1, 10);
	token_cache_store((gets(caller(4, 1, 10)), token_cache_bypass(&callers[3]), &callers[3]), "own", 7200, now);
	(void) gets(B);
	has(B, "good", "what is fetched past the cache stays past it");

	begin();
	(void) gets(A);
	token_cache_store(A, "good", 200, now);
	now += SECONDS(150);
	(void) gets(A);
	token_cache_fail(A, NULL);
	now += SECONDS(30) - 1;
	is(gets(B), TOKEN_READY, "a refresh that failed is not tried again for 30 seconds");
	now++;
	is(gets(B), TOKEN_READY_REFRESH, "... then it is");

	/* duties */
	begin();
	(void) gets(A);
	token_lease_pass_duty(A, B);
	is(A->fetching * 10 + B->fetching, 1, "a duty is handed on");
	token_cache_abandon(A);
	is(gets(C), TOKEN_WAIT, "... and who had it has nothing to give up");
	token_cache_store(B, "passed", 7200, now);
	is(gets(C), TOKEN_READY, "... who has it ends it");
	begin();
	(void) gets(A);
	token_cache_bypass(B);
	at_exit(0, (Datum) 0);
	is(A->fetching + B->fetching, 0, "a process that ends has no duty");
	is(gets(C), TOKEN_FETCH, "... which others take");

	/* tokens of all lengths */
	begin();
	memset(longest, 'x', TOKEN_MAX_LENGTH);
	longest[TOKEN_MAX_LENGTH] = '\0';
	(void) gets(A);
	token_cache_store(A, longest, 7200, now);
	has(A, longest, "the longest token is kept");
	is(gets(B), TOKEN_READY, "... for others, too");
	has(B, longest, "... whole");
	token_lease_take(C, B);
	has(C, longest, "... and taken over");
	is(C->generation, B->generation, "... as what it is");
	token_lease_wipe(B);
	has(B, "", "a token that is wiped is gone");
	is(B->token[1] | B->token[TOKEN_MAX_LENGTH - 1], 0, "... whole");
}

static void
test_refusals(void)
{
	begin();
	(void) gets(A);
	token_cache_store(A, "first", 7200, now);
	(void) gets(B);
	is(token_cache_evict(A), TOKEN_EVICTED, "a token that is refused is replaced");
	is(apps[0].token.text[0], 0, "... and wiped");
	is(gets(C), TOKEN_FETCH, "... by one");
	is(token_cache_evict(B), TOKEN_EVICTED, "another that is refused with it");
	token_cache_store(C, "second", 7200, now);
	is(C->unproven, 1, "the next one is to be proven");
	is(token_cache_evict(B), TOKEN_EVICTED, "... a refusal of the first one");
	is(gets(B), TOKEN_READY, "... is none of it");
	is(B->unproven, 1, "... which others know");
	token_lease_take(A, B);
	is(A->unproven, 1, "... and hand on");
	now += MS(500) - 1;
	is(token_cache_evict(B), TOKEN_REFUSED_AGAIN, "if it is refused, too, it is kept");
	is(gets(B), TOKEN_READY, "... for others");
	now++;
	is(token_cache_evict(B), TOKEN_EVICTED, "... for half a second");
	is(gets(B), TOKEN_FETCH, "... then it is replaced");
	token_cache_store(B, "third", 7200, now);
	token_cache_prove(A);
	(void) gets(C);
	is(C->unproven, 1, "that the one before was accepted proves nothing");
	token_cache_prove(C);
	is(C->unproven, 0, "it is accepted");
	(void) gets(A);
	is(A->unproven, 0, "... which others know");
	now += SECONDS(6000);
	is(gets(A), TOKEN_READY_REFRESH, "... it is refreshed");
	token_cache_store(A, "fourth", 7200, now);
	(void) gets(C);
	is(C->unproven, 0, "... by one that needs no proof");
	for (int i = 0; i < 20; i++)
		is(token_cache_evict(C), TOKEN_EVICTED, "... and replaced at once when it is refused, however often");

	/* tokens that are accepted now and then */
	begin();
	for (int i = 0; i < 8; i++)
	{
		(void) gets(A);
		token_cache_store(A, "some", 7200, now);
		token_cache_prove(A);
		is(token_cache_evict(A), TOKEN_EVICTED, "eight in a row are replaced at once");
	}
	(void) gets(A);
	token_cache_store(A, "some", 7200, now);
	token_cache_prove(A);
	is(token_cache_evict(A), TOKEN_REFUSED_OFTEN, "... and the ninth is not");
	now += MS(250) - 1;
	is(token_cache_evict(A), TOKEN_REFUSED_OFTEN, "... until a quarter of a second later");
	now++;
	is(token_cache_evict(A), TOKEN_EVICTED, "... then one is");
	(void) gets(A);
	token_cache_store(A, "some", 7200, now);
	now += MS(249);
	is(token_cache_evict(A), TOKEN_REFUSED_AGAIN, "one that is to be proven is told as such");
	apps[0].token.stored_at -= SECONDS(1);
	is(token_cache_evict(A), TOKEN_REFUSED_AGAIN, "... also if it is replaced too often");
	now += SECONDS(10);
	is(token_cache_evict(A), TOKEN_EVICTED, "later all is forgotten");

	/* the clock is set back */
	begin();
	(void) gets(A);
	token_cache_store(A, "some", 7200, now);
	(void) token_cache_evict(A);
	(void) gets(A);
	token_cache_store(A, "some", 7200, now);
	now -= SECONDS(100);
	is(token_cache_evict(A), TOKEN_EVICTED, "a clock that was set back keeps no refused token");
	apps[0].token.length = 1;
	apps[0].token.unproven = false;
	apps[0].token.replaced_until = now + SECONDS(100);
	is(token_cache_evict(A), TOKEN_EVICTED, "... nor for replacements of long ago");
}

static void
test_asking(void)
{
	TokenAsked	asked = {.database = 5, .serverid = 77, .userid = 88};
	TokenAsked	found[3];

	begin();
	(void) gets(A);
	token_cache_store(A, "some", 100, now);
	is(token_asks_of_database(found, 3), 0, "nothing is asked for");
	now += SECONDS(75);
	(void) gets(A);
	token_ask_dispatcher(A, &asked);
	is(A->fetching, 0, "the dispatcher is asked to refresh a token");
	is(gets(B), TOKEN_READY, "... nobody else does");
	is(token_asks_of_database(found, 0), 0, "... no more is taken than there is room for");
	is(token_asks_of_database(found, 3), 1, "... the dispatcher looks");
	is(found[0].serverid == 77 && found[0].userid == 88, 1, "... whose it is");
	is(memcmp(&found[0].key, &A->key, sizeof(AppKey)), 0, "... and of which app");
	MyDatabaseId = 6;
	is(token_asks_of_database(found, 3), 0, "... the one of its database");
	MyDatabaseId = 5;
	now += SECONDS(3) - 1;
	is(gets(B), TOKEN_READY, "... it has three seconds");
	now++;
	is(gets(B), TOKEN_READY_REFRESH, "... then the next does it");
	is(B->asked_in_vain, 1, "... by itself");
	is(token_ask_accept(C), 0, "... and the dispatcher comes too late");
	is(token_asks_of_database(found, 3), 0, "... and is asked no more");
	token_cache_abandon(B);

	(void) gets(A);
	token_ask_dispatcher(A, &asked);
	is(token_ask_accept(C), 1, "the dispatcher does it");
	is(C->fetching, 1, "... which is its duty then");
	is(token_asks_of_database(found, 3), 0, "... that is not asked for twice");
	is(gets(B), TOKEN_READY, "... nobody else does");
	is(token_ask_accept(C), 0, "... once");
	token_cache_store(C, "new", 100, now);
	(void) gets(B);
	has(B, "new", "... so that there is a new one");

	now += SECONDS(75);
	(void) gets(A);
	token_ask_dispatcher(A, &asked);
	token_ask_refuse(&A->key);
	is(token_asks_of_database(found, 3), 0, "the dispatcher cannot do it");
	is(gets(B), TOKEN_READY_REFRESH, "... the next does it at once");
	is(B->asked_in_vain, 1, "... by itself");
	token_cache_fail(B, NULL);
	now += SECONDS(24);
	token_ask_refuse(&A->key);
	apps[0].token.refresh_at = now;
	is(gets(B), TOKEN_READY_REFRESH, "... later, somebody");
	is(B->asked_in_vain, 0, "... may ask again");

	/* it expires before the dispatcher comes */
	begin();
	(void) gets(A);
	token_cache_store(A, "some", 4, now);
	now += SECONDS(3);
	(void) gets(A);
	token_ask_dispatcher(A, &asked);
	now += SECONDS(1);
	is(token_ask_accept(C), 0, "one that has expired meanwhile is not refreshed");
	is(gets(B), TOKEN_FETCH, "... but fetched");
	token_cache_store(B, "next", 4, now);
	now += SECONDS(3);
	(void) gets(A);
	token_ask_dispatcher(A, &asked);
	now -= SECONDS(1);
	apps[0].token.refresh_at = now;
	is(gets(B), TOKEN_READY_REFRESH, "a clock that was set back has nobody wait for the dispatcher");
	is(gets(C), TOKEN_READY, "... but for who does it");
	apps[0].token.ask = TOKEN_ASK_PENDING;
	is(token_ask_accept(C), 0, "... and the dispatcher does not do it besides");
}

static void
test_room(void)
{
	begin();
	for (int app = 1; app <= 5; app++)
	{
		TokenLease *lease = caller(app, app, app <= 2 ? 10 : 10 + app);

		is(gets(lease), TOKEN_FETCH, "there is room for five apps");
		token_cache_store(lease, "some", 7200, now);
		now += SECONDS(1);
	}
	is(losses, 0, "... without a loss");
	(void) gets(caller(0, 1, 10));
	is(gets(caller(6, 6, 16)), TOKEN_FETCH, "a sixth");
	is(losses, 1, "... takes the place of one, which the log tells");
	is(token_find(&callers[2].key) == NULL, 1, "... that was not used for longest");
	is(token_find(&callers[1].key) != NULL, 1, "... and no other");
	token_cache_abandon(&callers[6]);
	(void) gets(caller(7, 7, 17));
	is(token_find(&callers[6].key) == NULL, 1, "... or that has no token");
	token_cache_store(&callers[7], "some", 7200, now);

	/* who has a share makes room among his own */
	begin();
	for (int app = 1; app <= 5; app++)
	{
		TokenLease *lease = caller(app, app, app <= 3 ? 11 : 10);

		(void) gets(lease);
		token_cache_store(lease, "some", 7200, now);
		now += SECONDS(1);
	}
	(void) gets(caller(6, 6, 10));
	is(token_find(&callers[4].key) == NULL, 1, "who has a share of the places gives up one of his own");
	is(token_find(&callers[1].key) != NULL, 1, "... though others were not used for longer");
	now += SECONDS(6000);
	(void) gets(caller(0, 5, 99));
	is(app_find(&callers[5].key)->payer, InvalidOid, "an app that two pay for is nobody's");

	/* tokens that have expired */
	begin();
	for (int app = 1; app <= 5; app++)
	{
		(void) gets(caller(app, app, 10 + app));
		token_cache_store(&callers[app], "some", 7200, now);
	}
	now += SECONDS(7200);
	is(gets(caller(6, 6, 16)), TOKEN_FETCH, "an app whose token has expired makes room");
	is(token_find(&callers[6].key) != NULL, 1, "... for another");
	is(losses, 0, "... which is no loss");
	token_cache_abandon(&callers[6]);

	/* places in use */
	begin();
	for (int app = 1; app <= 5; app++)
		(void) gets(caller(app, app, 10));
	is(gets(caller(6, 6, 16)), TOKEN_FETCH, "with a fetch under way in each place, one fetches for itself");
	is(losses, 0, "... at nobody's cost");
	is(token_find(&callers[6].key) == NULL, 1, "... without a place");
	token_cache_store(&callers[6], "own", 7200, now);
	has(&callers[6], "own", "... and has it");
	is(gets(&callers[6]), TOKEN_FETCH, "... alone");
	token_cache_fail(&callers[6], NULL);
	now += SECONDS(3);
	is(gets(&callers[6]), TOKEN_FETCH, "one that hangs");
	is(token_find(&callers[6].key) != NULL, 1, "... makes room");
	is(losses, 1, "... which the log tells");
}

/* An app is last used now, by a payer, and has a token; its slot. */
static App *
in_table(int app, Oid payer)
{
	TokenLease *lease = caller(app, app, payer);

	(void) gets(lease);
	token_cache_store(lease, "some", 7200, now);
	now += SECONDS(1);
	return app_find(&lease->key);
}

/* Is an app in the table? */
static bool
is_known(int app)
{
	return app_find(&callers[app].key) != NULL;
}

/* A full table: the apps 1 to 3 of payer 10, and 4 and 5 of two others. */
static void
begin_full(void)
{
	begin();
	for (int app = 1; app <= 5; app++)
		(void) in_table(app, app <= 3 ? 10 : 10 + app);
}

static void
test_worth(void)
{
	/* tokens make room before limits in force do */
	begin_full();
	app_find(&callers[1].key)->gate.rate_until = now + SECONDS(60);
	app_find(&callers[2].key)->gate.in_flight = 1;
	app_find(&callers[3].key)->gate.turns_drawn = 1;
	(void) in_table(6, 16);
	is(is_known(1), 1, "limits in force stay while there is an app without");
	is(is_known(2), 1, "... one with calls under way, too");
	is(is_known(3), 1, "... and one with callers who wait");
	is(is_known(4), 0, "... which makes room");
	app_find(&callers[5].key)->gate.rate_until = now + SECONDS(60);
	app_find(&callers[6].key)->gate.rate_until = now + SECONDS(60);
	(void) in_table(7, 17);
	is(is_known(1), 0, "else one of who has most apps makes room");
	is(is_known(2) + is_known(3) + is_known(5) + is_known(6), 4, "... and no other");
	app_find(&callers[7].key)->gate.rate_until = now + SECONDS(60);
	losses = 0;
	is(gets(caller(8, 8, 18)), TOKEN_FETCH, "where nobody has more than a share, a newcomer");
	is(is_known(8), 0, "... has no room");
	is(losses, 0, "... and costs nobody anything");
	token_cache_abandon(&callers[8]);
	app_find(&callers[2].key)->gate.in_flight = 0;
	(void) in_table(9, 10);
	is(is_known(2), 0, "who has a share gives up his own");
	app_find(&callers[3].key)->gate.turns_over = 1;
	(void) in_table(10, 10);
	is(is_known(9) + is_known(3), 1, "... one of them");

	/* who has a share takes no token of somebody else */
	begin_full();
	for (int app = 1; app <= 3; app++)
		app_find(&callers[app].key)->gate.in_flight = 1;
	(void) gets(caller(6, 6, 10));
	is(is_known(6), 0, "who has a share, all in use, has no room");
	is(is_known(4) + is_known(5), 2, "... and takes no token of others");
	token_cache_abandon(&callers[6]);
	app_find(&callers[4].key)->token.length = 0;
	(void) in_table(6, 10);
	is(is_known(4), 0, "... but a place with which nothing is lost");

	/* a gate and a token begin anew */
	begin_full();
	app_find(&callers[1].key)->gate.rate_until = now;
	app_find(&callers[1].key)->gate.keep_epoch = 7;
	(void) caller(6, 6, 16);
	(void) gets(&callers[6]);
	is(app_find(&callers[6].key) == &apps[0], 1, "a place that was another's");
	is(apps[0].gate.rate_until + apps[0].gate.keep_epoch, 0, "... has nothing of its limits");
	is(apps[0].token.length + apps[0].token.text[0], 0, "... nor of its token");
	is(apps[0].payer, 16, "... and is paid for by who has it now");
}

int
main(void)
{
	MainLWLockArray = locks;
	test_life();
	test_fetches();
	test_refusals();
	test_asking();
	test_room();
	test_worth();
	is(locked, 0, "no lock is left");
	return 0;
}
