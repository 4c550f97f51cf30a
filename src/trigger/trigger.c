/*-------------------------------------------------------------------------
 *
 * src/trigger/trigger.c
 *	  feishu.flow_trigger(): a data change becomes a queued flow.
 *
 * What a trigger's arguments say is parsed once a session, into a TriggerPlan,
 * found by the trigger's OID.  A plan is made invalid by the relcache
 * invalidation of its table, which every change to the table or its triggers
 * sends, or of the root that it is a partition of, and by changes to any schema,
 * since their names are part of events.  Nothing else that a plan depends on can
 * change while its table is locked by the statement that fires the trigger.
 *
 * Each plan has a memory context.  Firings of one trigger may nest, by way of
 * a user's cast to json that writes to the same table, so a firing holds its
 * plan by a count, released by a reset callback of the firing's own memory
 * context, which an error reaches as well.  Plans that are invalid and held by
 * nobody are freed when the next plan is made.
 *
 * A firing works in a context of its own, deleted at the end.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/trigger.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/nls.h"
#include "queue/outbox.h"
#include "trigger/event.h"
#include "trigger/role.h"
#include "trigger/template.h"
#include "wire/wire_check.h"

PG_FUNCTION_INFO_V1(feishu_flow_trigger);

/* Positions of the trigger's arguments. */
#define ARG_NAMESPACE		0
#define ARG_FLOW_ID			1
#define ARG_OPERATOR		2
#define ARG_PARAMS			3
#define ARG_OPTIONS			4
#define MIN_ARGUMENTS		2
#define MAX_ARGUMENTS		5

#define SYNTAX_HINT \
	gettext_noop("Write EXECUTE FUNCTION feishu.flow_trigger(namespace, flow_id [, operator template [, params template [, options template]]]).")

/* A trigger's arguments, parsed.  Strings are the plan's own. */
typedef struct TriggerPlan
{
	MemoryContext context;		/* of all of it */
	Oid			relid;
	Oid			rootid;			/* see event_plan_root */
	bool		is_valid;
	bool		is_replaced;	/* another one is in the hash by now */
	int			users;			/* firings under way */
	char	   *trigger;		/* names, for messages */
	char	   *table;
	char	   *namespace_name;
	char	   *flow_id;
	Template   *operator_id;	/* NULL: the server's */
	Template   *params;			/* NULL: the whole event */
	Template   *options;		/* NULL: none */
	bool		needs_event;
	EventPlan  *event;
} TriggerPlan;

typedef struct PlanEntry
{
	Oid			tgoid;			/* hash key */
	TriggerPlan *plan;
} PlanEntry;

/* For error messages. */
typedef struct FiringContext
{
	const char *trigger;
	const char *table;
} FiringContext;

/* An option: how its value sets which field. */
typedef struct TriggerOption
{
	const char *name;
	void		(*set) (const char *name, const JsonbValue *value, void *field);
	size_t		field;			/* of QueuedFlow */
} TriggerOption;

static HTAB *plans = NULL;		/* PlanEntry by tgoid; for the session */
static int	num_invalid = 0;	/* at most so many in it are invalid */


/* ---------- Options ---------- */

/* Throw that an option's value cannot be used: a sentence with %s for its name. */
static void
report_option(const char *name, const char *problem)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg(problem, name)));
}

#define NO_TIME	gettext_noop("option \"%s\" of the options template must be a timestamp with time zone, as text")

/* A scalar as text, as ->> gives it. */
static char *
option_text(const char *name, const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvString:
			return pnstrdup(value->val.string.val, value->val.string.len);
		case jbvNumeric:
			return DatumGetCString(DirectFunctionCall1(numeric_out,
													   NumericGetDatum(value->val.numeric)));
		case jbvBool:
			return pstrdup(value->val.boolean ? "true" : "false");
		default:
			report_option(name, gettext_noop("option \"%s\" of the options template must be text, a number or a boolean"));
			return NULL;		/* keep compiler quiet */
	}
}

static TimestampTz
option_time(const char *name, const JsonbValue *value)
{
	Datum		datum;
	char	   *text;
	ErrorData  *error;

	if (value->type != jbvString)
		report_option(name, NO_TIME);
	text = option_text(name, value);
	if (!feishu_input(timestamptz_in, text, &datum, &error))
		ereport(ERROR,
				(errcode(error->sqlerrcode),
				 errmsg(NO_TIME, name),
				 errdetail_internal("%s", error->message)));
	return DatumGetTimestampTz(datum);
}

static void
set_boolean(const char *name, const JsonbValue *value, void *field)
{
	if (value->type == jbvBool)
		*(bool *) field = value->val.boolean;
	else if (value->type != jbvString ||
			 !parse_bool_with_len(value->val.string.val, value->val.string.len, field))
		report_option(name, gettext_noop("option \"%s\" of the options template must be a boolean"));
}

static void
set_text(const char *name, const JsonbValue *value, void *field)
{
	*(char **) field = option_text(name, value);
}

static void
set_array(const char *name, const JsonbValue *value, void *field)
{
	Jsonb	   *json = JsonbValueToJsonb(unconstify(JsonbValue *, value));

	if (!JB_ROOT_IS_ARRAY(json) || JB_ROOT_IS_SCALAR(json))
	{
		const char *hint = request_sort_hint(json, NULL);

		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"%s\" of the options template must be a JSON array", name),
				 errdetail_internal("%s", _(request_sort(json))),
				 hint ? errhint("%s", _(hint)) : 0));
	}
	*(Jsonb **) field = json;
}

static void
set_time(const char *name, const JsonbValue *value, void *field)
{
	*(TimestampTz *) field = option_time(name, value);
}

/* An integer that is no less than this; otherwise the problem. */
static void
read_integer(const char *name, const JsonbValue *value, int least, const char *problem, int *field)
{
	int64		number;

	if (!request_integer(option_text(name, value), &number) || number < least || number > INT_MAX)
		report_option(name, problem);
	*field = (int) number;
}

static void
set_max_attempts(const char *name, const JsonbValue *value, void *field)
{
	read_integer(name, value, 1,
				 gettext_noop("option \"%s\" of the options template must be a positive integer"), field);
}

static void
set_priority(const char *name, const JsonbValue *value, void *field)
{
	read_integer(name, value, INT_MIN,
				 gettext_noop("option \"%s\" of the options template must be an integer"), field);
}

static void
set_expires_at(const char *name, const JsonbValue *value, void *field)
{
	TimestampTz expires_at = option_time(name, value);

	*(TimestampTz *) field = OUTBOX_GIVEN_EXPIRY(expires_at);
}

/* Those arguments of enqueue_flow that the trigger does not take itself. */
static const TriggerOption trigger_options[] = {
	{"is_async", set_boolean, offsetof(QueuedFlow, request.is_async)},
	{"idempotent_key", set_text, offsetof(QueuedFlow, request.idempotent_key)},
	{"loop_masks", set_array, offsetof(QueuedFlow, request.loop_masks)},
	{"server", set_text, offsetof(QueuedFlow, server)},
	{"run_at", set_time, offsetof(QueuedFlow, run_at)},
	{"ordering_key", set_text, offsetof(QueuedFlow, ordering_key)},
	{"max_attempts", set_max_attempts, offsetof(QueuedFlow, max_attempts)},
	{"expires_at", set_expires_at, offsetof(QueuedFlow, expires_at)},
	{"on_end", set_text, offsetof(QueuedFlow, on_end)},
	{"replace_key", set_text, offsetof(QueuedFlow, replace_key)},
	{"priority", set_priority, offsetof(QueuedFlow, priority)},
};

static const TriggerOption *
option_find(const JsonbValue *key)
{
	for (int i = 0; i < (int) lengthof(trigger_options); i++)
	{
		const char *name = trigger_options[i].name;

		if (strlen(name) == (size_t) key->val.string.len &&
			memcmp(name, key->val.string.val, key->val.string.len) == 0)
			return &trigger_options[i];
	}
	return NULL;
}

/* Throw that there is no such option, with the one that was meant. */
static void
report_unknown_option(const char *trigger, const char *name)
{
	ClosestMatchState match;
	const char *closest;
	StringInfoData names;

	initStringInfo(&names);
	initClosestMatch(&match, name, 4);
	for (int i = 0; i < (int) lengthof(trigger_options); i++)
	{
		updateClosestMatch(&match, trigger_options[i].name);
		appendStringInfo(&names, "%s%s", i > 0 ? ", " : "", trigger_options[i].name);
	}
	closest = getClosestMatch(&match);
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("options template of trigger \"%s\" has an unknown option \"%s\"",
					trigger, name),
			 closest ? errhint("Perhaps you meant the option \"%s\".", closest) :
			 errhint("Options are: %s.", names.data)));
}

/* The options template has to be an object of known keys. */
static void
options_check(const Template *options, const char *trigger)
{
	Jsonb	   *json = template_json(options);
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;

	if (!JB_ROOT_IS_OBJECT(json))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("options template of trigger \"%s\" must be a JSON object", trigger),
				 errhint("Write it like '{\"ordering_key\": \"$.new.id\"}'.")));
	iterator = JsonbIteratorInit(&json->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY && option_find(&value) == NULL)
			report_unknown_option(trigger, pnstrdup(value.val.string.val,
													value.val.string.len));
	}
}

/* Set what the options give; null is the same as not given. */
static void
options_apply(Jsonb *options, QueuedFlow *flow)
{
	JsonbIterator *iterator = JsonbIteratorInit(&options->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	const TriggerOption *option = NULL;

	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			option = option_find(&value);
		else if (token == WJB_VALUE && value.type != jbvNull)
			option->set(option->name, &value, (char *) flow + option->field);
	}
}


/* ---------- Plans ---------- */

/* Relcache callback: relid's definition changed; InvalidOid: anything's. */
static void
plan_invalidate(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	PlanEntry  *entry;

	hash_seq_init(&status, plans);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		if (entry->plan->is_valid &&
			(relid == InvalidOid || entry->plan->relid == relid ||
			 entry->plan->rootid == relid))
		{
			entry->plan->is_valid = false;
			num_invalid++;
		}
	}
}

/* Syscache callback: a schema may have another name. */
static void
plan_invalidate_all(Datum arg, SysCacheIdentifier cacheid, uint32 hashvalue)
{
	plan_invalidate(arg, InvalidOid);
}

static void
plans_create(void)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(PlanEntry);
	plans = hash_create("feishu_flow triggers", 16, &ctl, HASH_ELEM | HASH_BLOBS);
	CacheRegisterRelcacheCallback(plan_invalidate, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, plan_invalidate_all, (Datum) 0);
}

/* The valid plan of a trigger, or NULL. */
static TriggerPlan *
plan_find(Oid tgoid)
{
	PlanEntry  *entry;

	if (plans == NULL)
		plans_create();
	entry = hash_search(plans, &tgoid, HASH_FIND, NULL);
	return entry != NULL && entry->plan->is_valid ? entry->plan : NULL;
}

/* Free plans that are of no use. */
static void
plan_sweep(void)
{
	HASH_SEQ_STATUS status;
	PlanEntry  *entry;

	if (num_invalid == 0)
		return;
	num_invalid = 0;
	hash_seq_init(&status, plans);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		TriggerPlan *plan = entry->plan;

		if (plan->is_valid)
			continue;
		if (plan->users > 0)
			num_invalid++;
		else
		{
			hash_search(plans, &entry->tgoid, HASH_REMOVE, NULL);
			MemoryContextDelete(plan->context);
		}
	}
}

/* Put a plan into the hash, in place of an invalid one. */
static void
plan_enter(TriggerPlan *plan, Oid tgoid)
{
	PlanEntry  *entry;
	bool		found;

	entry = hash_search(plans, &tgoid, HASH_ENTER, &found);
	if (found)
		entry->plan->is_replaced = true;	/* still held, or it were swept */
	entry->plan = plan;
}

/* Reset callback of a firing's context. */
static void
plan_release(void *arg)
{
	TriggerPlan *plan = arg;

	if (--plan->users == 0 && plan->is_replaced)
		MemoryContextDelete(plan->context);
}

/* Hold a plan for as long as the current memory context. */
static void
plan_hold(TriggerPlan *plan)
{
	MemoryContextCallback *callback = palloc(sizeof(MemoryContextCallback));

	callback->func = plan_release;
	callback->arg = plan;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, callback);
	plan->users++;
}

static void
check_number_of_arguments(const Trigger *trigger)
{
	if (trigger->tgnargs < MIN_ARGUMENTS || trigger->tgnargs > MAX_ARGUMENTS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("trigger \"%s\" calls feishu.flow_trigger() with a wrong number of arguments",
						trigger->tgname),
				 errdetail("It takes %d to %d, and has %d.", MIN_ARGUMENTS, MAX_ARGUMENTS,
						   trigger->tgnargs),
				 errhint("%s", _(SYNTAX_HINT))));
}

/* Argument n as a template, NULL when it is not there, empty, or null. */
static Template *
plan_template(const TriggerPlan *plan, const Trigger *trigger, int n,
			  const char *argument)
{
	if (n >= trigger->tgnargs)
		return NULL;
	return template_parse(argument, plan->trigger, trigger->tgargs[n]);
}

/*
 * Make a trigger's plan.  It stays below the current memory context until
 * nothing can go wrong.
 */
static TriggerPlan *
plan_create(const TriggerData *trigdata, const char *table)
{
	const Trigger *trigger = trigdata->tg_trigger;
	MemoryContext context;
	MemoryContext caller;
	TriggerPlan *plan;
	EventNeeds	needs = {0};

	check_number_of_arguments(trigger);
	context = AllocSetContextCreate(CurrentMemoryContext, "feishu_flow trigger",
									ALLOCSET_SMALL_SIZES);
	caller = MemoryContextSwitchTo(context);

	plan = palloc0(sizeof(TriggerPlan));
	plan->context = context;
	plan->relid = RelationGetRelid(trigdata->tg_relation);
	plan->is_valid = true;
	plan->trigger = pstrdup(trigger->tgname);
	plan->table = pstrdup(table);
	plan->namespace_name = pstrdup(trigger->tgargs[ARG_NAMESPACE]);
	plan->flow_id = pstrdup(trigger->tgargs[ARG_FLOW_ID]);
	plan->operator_id = plan_template(plan, trigger, ARG_OPERATOR, "operator");
	plan->params = plan_template(plan, trigger, ARG_PARAMS, "params");
	plan->options = plan_template(plan, trigger, ARG_OPTIONS, "options");

	if (plan->operator_id != NULL)
		template_add_needs(plan->operator_id, trigdata, &needs);
	if (plan->params != NULL)
		template_add_needs(plan->params, trigdata, &needs);
	else
		needs_add_all(&needs);
	if (plan->options != NULL)
	{
		options_check(plan->options, plan->trigger);
		template_add_needs(plan->options, trigdata, &needs);
	}
	plan->needs_event = needs.any;
	plan->event = event_plan_create(trigdata->tg_relation, &needs);
	plan->rootid = event_plan_root(plan->event);

	MemoryContextSwitchTo(caller);
	plan_sweep();
	MemoryContextSetParent(context, TopMemoryContext);
	plan_enter(plan, trigger->tgoid);
	return plan;
}


/* ---------- Firing ---------- */

static void
firing_error_callback(void *arg)
{
	FiringContext *firing = arg;

	errcontext("feishu.flow_trigger() of trigger \"%s\" on table \"%s\"",
			   firing->trigger, firing->table);
}

/*
 * Only after the change is it known what it is, and that it takes place: a
 * BEFORE trigger can be followed by others that change or suppress the row.
 */
static void
check_timing(const TriggerData *trigdata)
{
	if (!TRIGGER_FIRED_AFTER(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" must be an AFTER trigger", trigdata->tg_trigger->tgname),
				 TRIGGER_FIRED_INSTEAD(trigdata->tg_event) ?
				 errhint("An INSTEAD OF trigger of a view can call feishu.enqueue_flow(), or put AFTER triggers on the tables that it changes.") :
				 errhint("Create it as AFTER: later triggers may still change or suppress what a BEFORE trigger sees.")));
}

/* Queue the flow of a firing. */
static void
plan_fire(TriggerPlan *plan, const TriggerData *trigdata)
{
	QueuedFlow	flow = {0};
	Jsonb	   *event = NULL;

	flow.roleid = role_of_change(trigdata);
	flow.request.is_async = true;
	flow.run_at = DT_NOBEGIN;
	flow.max_attempts = -1;
	flow.expires_at = DT_NOBEGIN;
	flow.request.namespace_name = plan->namespace_name;
	flow.request.flow_id = plan->flow_id;

	if (plan->needs_event)
		event = event_build(plan->event, trigdata);
	if (plan->operator_id != NULL)
		flow.request.operator_id =
			request_operator(request_json(template_render(plan->operator_id, event)));
	flow.request.params = plan->params != NULL ?
		request_json(template_render(plan->params, event)) : event;
	if (plan->options != NULL)
		options_apply(template_render(plan->options, event), &flow);
	if (flow.on_end != NULL)
	{
		role_check_handler(trigdata, flow.roleid);
		flow.on_end_needs_schema = trigdata->tg_trigger->tgdeferrable;
	}

	(void) outbox_enqueue(&flow);
}

/*
 * The trigger function.
 */
Datum
feishu_flow_trigger(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context;
	ErrorContextCallback callback;
	FiringContext firing;
	TriggerPlan *plan;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("feishu.flow_trigger() can only be called as a trigger"),
				 errhint("Use CREATE TRIGGER, or call feishu.enqueue_flow().")));

	context = AllocSetContextCreate(caller, "feishu_flow firing", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);

	plan = plan_find(trigdata->tg_trigger->tgoid);
	if (plan != NULL)
		plan_hold(plan);
	firing.trigger = trigdata->tg_trigger->tgname;
	firing.table = plan != NULL ? plan->table :
		psprintf("%s.%s", get_namespace_name(RelationGetNamespace(trigdata->tg_relation)),
				 RelationGetRelationName(trigdata->tg_relation));

	callback.callback = firing_error_callback;
	callback.arg = &firing;
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	check_timing(trigdata);
	if (plan == NULL)
	{
		plan = plan_create(trigdata, firing.table);
		plan_hold(plan);
	}
	if (!event_is_empty(trigdata))
		plan_fire(plan, trigdata);

	error_context_stack = callback.previous;
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);
	PG_RETURN_POINTER(NULL);
}
