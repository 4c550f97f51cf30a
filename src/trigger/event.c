/*-------------------------------------------------------------------------
 *
 * src/trigger/event.c
 *	  What a trigger fired for, as jsonb: the document that templates look at.
 *
 * Rows become what to_jsonb makes of them.  Most templates look at a few
 * columns, so only those are converted, one at a time: a wide or toasted row costs
 * no more than what is taken from it.
 *
 * Virtual generated columns are not computed when triggers fire, so they are
 * computed here, from the row at hand.
 *
 * The event is laid out as a tree of JsonbValues, as pushJsonbValue would,
 * except that the keys of each object are known beforehand and put in jsonb's
 * order: there is nothing to sort and nothing to grow.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "optimizer/optimizer.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"

#include "base/compat.h"
#include "base/nls.h"
#include "trigger/event.h"

#define NUM_PLAIN_MEMBERS	5	/* op, schema, table, root_schema, root_table */

typedef struct EventColumn
{
	AttrNumber	attno;
	JsonbValue	name;
	bool		wanted[EVENT_SIDES];
	ExprState  *expression;		/* of a virtual generated column, or NULL */
	FmgrInfo	to_jsonb;
} EventColumn;

struct EventPlan
{
	Oid			relid;
	JsonbValue	schema;
	JsonbValue	table;
	Oid			rootid;			/* of a partition, else InvalidOid */
	JsonbValue	root_schema;
	JsonbValue	root_table;
	bool		side[EVENT_SIDES];
	int			last_attno[EVENT_SIDES];	/* of those that are stored */
	int			num_wanted[EVENT_SIDES];
	bool		has_expressions;
	int			num_columns;
	EventColumn columns[FLEXIBLE_ARRAY_MEMBER];
};

/* An event being built. */
typedef struct EventBuilder
{
	Size		size;			/* of what is in it, never too high */
	bool		is_set;			/* values come from transition tables */
	const EventColumn *column;	/* being converted, or NULL */
	MemoryContext scratch;		/* reset with each row, or NULL */
	ExprContext *econtext;		/* to compute columns in, or NULL */
} EventBuilder;

/* Set up a string; it is not copied. */
static void
string_init(JsonbValue *value, char *text)
{
	value->type = jbvString;
	value->val.string.val = text;
	value->val.string.len = strlen(text);
}

/* Make to_jsonb callable for a type, which it asks the expression for. */
static void
to_jsonb_init(FmgrInfo *flinfo, Form_pg_attribute attribute)
{
	Const	   *argument = makeNullConst(attribute->atttypid, attribute->atttypmod,
										 attribute->attcollation);

	fmgr_info(F_TO_JSONB, flinfo);
	fmgr_info_set_expr((Node *) makeFuncExpr(F_TO_JSONB, JSONBOID, list_make1(argument),
											 InvalidOid, InvalidOid,
											 COERCE_EXPLICIT_CALL),
					   flinfo);
}

/* jsonb's order of keys: shorter ones first. */
static int
column_compare(const void *a, const void *b)
{
	const JsonbValue *left = &((const EventColumn *) a)->name;
	const JsonbValue *right = &((const EventColumn *) b)->name;

	if (left->val.string.len != right->val.string.len)
		return left->val.string.len > right->val.string.len ? 1 : -1;
	return memcmp(left->val.string.val, right->val.string.val, left->val.string.len);
}

/*
 * Prepare to build the needed part of the events of a table, in the current
 * memory context.  The plan holds until the definition of the table, or of the root
 * that it is a partition of, or the name of a schema changes.
 */
EventPlan *
event_plan_create(Relation rel, const EventNeeds *needs)
{
	TupleDesc	tupdesc = RelationGetDescr(rel);
	EventPlan  *plan;
	char	   *schema;
	char	   *table;

	plan = palloc0(offsetof(EventPlan, columns) + tupdesc->natts * sizeof(EventColumn));
	plan->relid = RelationGetRelid(rel);
	string_init(&plan->schema, get_namespace_name(RelationGetNamespace(rel)));
	string_init(&plan->table, pstrdup(RelationGetRelationName(rel)));
	plan->rootid = names_find_root(rel, &schema, &table);
	if (OidIsValid(plan->rootid))
	{
		string_init(&plan->root_schema, schema);
		string_init(&plan->root_table, table);
	}
	for (int side = 0; side < EVENT_SIDES; side++)
		plan->side[side] = needs->side[side];

	for (int i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(tupdesc, i);
		EventColumn *column = &plan->columns[plan->num_columns];
		Expr	   *expression;
		bool		is_wanted = false;

		if (attribute->attisdropped)
			continue;
		for (int side = 0; side < EVENT_SIDES; side++)
		{
			column->wanted[side] = needs_column(needs, side, NameStr(attribute->attname));
			if (column->wanted[side])
			{
				plan->num_wanted[side]++;
				is_wanted = true;
			}
		}
		if (!is_wanted)
			continue;

		column->attno = attribute->attnum;
		string_init(&column->name, pstrdup(NameStr(attribute->attname)));
		to_jsonb_init(&column->to_jsonb, attribute);
		expression = feishu_virtual_expression(rel, attribute->attnum);
		if (expression != NULL)
		{
			column->expression = ExecInitExpr(expression_planner(expression), NULL);
			plan->has_expressions = true;
		}
		else
		{
			for (int side = 0; side < EVENT_SIDES; side++)
			{
				if (column->wanted[side])
					plan->last_attno[side] = attribute->attnum;
			}
		}
		plan->num_columns++;
	}
	qsort(plan->columns, plan->num_columns, sizeof(EventColumn), column_compare);
	return plan;
}

/* The root that the table is a partition of, or InvalidOid. */
Oid
event_plan_root(const EventPlan *plan)
{
	return plan->rootid;
}

/* A statement with transition tables that changed no row. */
bool
event_is_empty(const TriggerData *trigdata)
{
	if (trigdata->tg_newtable == NULL && trigdata->tg_oldtable == NULL)
		return false;
	return (trigdata->tg_newtable == NULL ||
			tuplestore_tuple_count(trigdata->tg_newtable) == 0) &&
		(trigdata->tg_oldtable == NULL ||
		 tuplestore_tuple_count(trigdata->tg_oldtable) == 0);
}

/*
 * Count what is about to be added, to stop long before memory runs out: a
 * transition table may be of any size, and jsonb refuses only at the end.
 */
static void
builder_count(EventBuilder *builder, Size size)
{
	builder->size += sizeof(JEntry) + size;
	if (builder->size > JENTRY_OFFLENMASK)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the event is larger than the %d MB that jsonb can hold",
						(JENTRY_OFFLENMASK + 1) / (1024 * 1024)),
				 builder->is_set ?
				 errhint("Take only the columns that the flow needs, as in \"$.new_rows[*].id\"; or change fewer rows in a statement; or make it a trigger FOR EACH ROW.") :
				 errhint("Take only the columns that the flow needs, as in \"$.new.id\".")));
}

/* An object with room for so many members. */
static void
object_init(JsonbValue *object, int max_pairs)
{
	object->type = jbvObject;
	object->val.object.nPairs = 0;
	object->val.object.pairs = palloc(max_pairs * sizeof(JsonbPair));
}

/*
 * Add a member, and return its value to be filled in.  Members have to come in
 * the order of column_compare.
 */
static JsonbValue *
object_add(EventBuilder *builder, JsonbValue *object, const JsonbValue *key)
{
	JsonbPair  *pair = &object->val.object.pairs[object->val.object.nPairs];

	builder_count(builder, key->val.string.len);
	pair->key = *key;
	pair->order = object->val.object.nPairs++;
	return &pair->value;
}

/* Add a member by a name that lasts. */
static JsonbValue *
object_add_named(EventBuilder *builder, JsonbValue *object, char *name)
{
	JsonbValue	key;

	string_init(&key, name);
	return object_add(builder, object, &key);
}

static void
set_string(EventBuilder *builder, JsonbValue *value, char *text, int len)
{
	builder_count(builder, len);
	value->type = jbvString;
	value->val.string.val = text;
	value->val.string.len = len;
}

static void
set_null(EventBuilder *builder, JsonbValue *value)
{
	builder_count(builder, 0);
	value->type = jbvNull;
}

/* What to_jsonb makes of a value; not in scratch memory. */
static Jsonb *
column_to_jsonb(EventBuilder *builder, EventColumn *column, Datum datum)
{
	MemoryContext caller;
	Jsonb	   *jsonb;
	Jsonb	   *copy;

	if (builder->scratch == NULL)
		return DatumGetJsonbP(FunctionCall1(&column->to_jsonb, datum));

	caller = MemoryContextSwitchTo(builder->scratch);
	jsonb = DatumGetJsonbP(FunctionCall1(&column->to_jsonb, datum));
	MemoryContextSwitchTo(caller);
	copy = palloc(VARSIZE(jsonb));
	memcpy(copy, jsonb, VARSIZE(jsonb));
	return copy;
}

/* Set a column's value. */
static void
set_value(EventBuilder *builder, JsonbValue *value, EventColumn *column, Datum datum)
{
	Jsonb	   *jsonb = column_to_jsonb(builder, column, datum);

	builder_count(builder, VARSIZE(jsonb) - VARHDRSZ);
	if (JB_ROOT_IS_SCALAR(jsonb))
		(void) JsonbExtractScalar(&jsonb->root, value);
	else
	{
		JsonbIterator *iterator = JsonbIteratorInit(&jsonb->root);
		JsonbIteratorToken token;
		JsonbValue	part;
		JsonbInState state = {0};

		while ((token = JsonbIteratorNext(&iterator, &part, false)) != WJB_DONE)
			feishu_jsonb_push(&state, token, token < WJB_BEGIN_ARRAY ? &part : NULL);
		*value = *state.result;
	}
}

/* Set an object of a row's wanted columns. */
static void
set_row(EventBuilder *builder, JsonbValue *value, EventPlan *plan, int side,
		TupleTableSlot *slot)
{
	slot_getsomeattrs(slot, plan->last_attno[side]);
	if (builder->econtext != NULL)
		builder->econtext->ecxt_scantuple = slot;

	object_init(value, plan->num_wanted[side]);
	for (int i = 0; i < plan->num_columns; i++)
	{
		EventColumn *column = &plan->columns[i];
		JsonbValue *member;
		Datum		datum;
		bool		isnull;

		if (!column->wanted[side])
			continue;
		builder->column = column;
		if (column->expression != NULL)
			datum = ExecEvalExprSwitchContext(column->expression, builder->econtext, &isnull);
		else
		{
			datum = slot->tts_values[column->attno - 1];
			isnull = slot->tts_isnull[column->attno - 1];
		}
		member = object_add(builder, value, &column->name);
		if (isnull)
			set_null(builder, member);
		else
			set_value(builder, member, column, datum);
	}
	builder->column = NULL;
}

/*
 * Set an array of a transition table's rows.  The table's first read pointer
 * belongs to nobody: whoever scans the table allocates another.
 */
static void
set_table(EventBuilder *builder, JsonbValue *value, EventPlan *plan, int side,
		  Relation rel, Tuplestorestate *table)
{
	int64		num_rows = tuplestore_tuple_count(table);
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(rel),
													&TTSOpsMinimalTuple);

	/* each row takes at least this, so that too many are refused here */
	builder_count(builder, num_rows * (sizeof(JEntry) + sizeof(uint32)));

	value->type = jbvArray;
	value->val.array.nElems = 0;
	value->val.array.rawScalar = false;
	value->val.array.elems = palloc(num_rows * sizeof(JsonbValue));
	tuplestore_select_read_pointer(table, 0);
	tuplestore_rescan(table);
	while (value->val.array.nElems < num_rows &&
		   tuplestore_gettupleslot(table, true, false, slot))
	{
		CHECK_FOR_INTERRUPTS();
		slot->tts_tableOid = plan->relid;
		set_row(builder, &value->val.array.elems[value->val.array.nElems++],
				plan, side, slot);
		MemoryContextReset(builder->scratch);
		if (builder->econtext != NULL)
			ResetExprContext(builder->econtext);
	}
	ExecDropSingleTupleTableSlot(slot);
}

/* The rows of a row trigger. */
static void
add_sides_of_row(EventBuilder *builder, JsonbValue *event, EventPlan *plan,
				 const TriggerData *trigdata)
{
	static char *const names[EVENT_SIDES] = {"new", "old"};
	TupleTableSlot *slots[EVENT_SIDES] = {NULL, NULL};

	if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		slots[EVENT_NEW] = trigdata->tg_trigslot;
	else
		slots[EVENT_OLD] = trigdata->tg_trigslot;
	if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
		slots[EVENT_NEW] = trigdata->tg_newslot;

	for (int side = 0; side < EVENT_SIDES; side++)
	{
		JsonbValue *member;

		if (!plan->side[side])
			continue;
		member = object_add_named(builder, event, names[side]);
		if (slots[side] == NULL)
			set_null(builder, member);
		else
			set_row(builder, member, plan, side, slots[side]);
	}
}

/* The transition tables of a statement trigger, if it has any. */
static void
add_sides_of_statement(EventBuilder *builder, JsonbValue *event, EventPlan *plan,
					   const TriggerData *trigdata)
{
	static char *const names[EVENT_SIDES] = {"new_rows", "old_rows"};
	Tuplestorestate *tables[EVENT_SIDES];

	tables[EVENT_NEW] = trigdata->tg_newtable;
	tables[EVENT_OLD] = trigdata->tg_oldtable;
	if (tables[EVENT_NEW] == NULL && tables[EVENT_OLD] == NULL)
		return;

	for (int side = 0; side < EVENT_SIDES; side++)
	{
		JsonbValue *member;

		if (!plan->side[side])
			continue;
		member = object_add_named(builder, event, names[side]);
		if (tables[side] == NULL)
			set_null(builder, member);
		else
			set_table(builder, member, plan, side, trigdata->tg_relation, tables[side]);
	}
}

/* INSERT, UPDATE, DELETE or TRUNCATE */
static char *
event_operation(const TriggerData *trigdata)
{
	if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		return "INSERT";
	if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
		return "UPDATE";
	if (TRIGGER_FIRED_BY_DELETE(trigdata->tg_event))
		return "DELETE";
	return "TRUNCATE";
}

/*
 * The event as a tree in the current memory context, in jsonb's order of keys:
 * op, new, old, table, schema, new_rows, old_rows, root_table, root_schema.
 */
static void
event_lay_out(EventBuilder *builder, JsonbValue *event, EventPlan *plan,
			  const TriggerData *trigdata)
{
	char	   *operation = event_operation(trigdata);
	bool		is_row = TRIGGER_FIRED_FOR_ROW(trigdata->tg_event);

	object_init(event, NUM_PLAIN_MEMBERS + EVENT_SIDES);
	set_string(builder, object_add_named(builder, event, "op"),
			   operation, strlen(operation));
	if (is_row)
		add_sides_of_row(builder, event, plan, trigdata);
	*object_add_named(builder, event, "table") = plan->table;
	*object_add_named(builder, event, "schema") = plan->schema;
	if (!is_row)
		add_sides_of_statement(builder, event, plan, trigdata);
	if (OidIsValid(plan->rootid))
	{
		*object_add_named(builder, event, "root_table") = plan->root_table;
		*object_add_named(builder, event, "root_schema") = plan->root_schema;
	}
}

static void
column_error_callback(void *arg)
{
	const EventBuilder *builder = arg;

	if (builder->column != NULL)
		errcontext("conversion of column \"%s\" to jsonb",
				   builder->column->name.val.string.val);
}

/*
 * Throw the error again that came while a column was converted, with the advice to
 * leave the column out, if that is what is wrong and there is no other.
 */
static void
rethrow_with_hint(const EventBuilder *builder, MemoryContext context)
{
	ErrorData  *error;
	const char *name;

	switch (ERRCODE_TO_CATEGORY(geterrcode()))
	{
		case ERRCODE_OPERATOR_INTERVENTION:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_SYSTEM_ERROR:
			PG_RE_THROW();
		default:
			break;
	}
	if (builder->column == NULL)
		PG_RE_THROW();
	name = builder->column->name.val.string.val;
	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	FlushErrorState();
	if (error->hint == NULL)
		error->hint = builder->is_set ?
			psprintf(_("To leave out column \"%s\", name those that the flow needs in the templates, as in '{\"ids\": \"$.new_rows[*].id\"}': no other is converted."), name) :
			psprintf(_("To leave out column \"%s\", name those that the flow needs in the templates, as in '{\"id\": \"$.new.id\"}': no other is converted."), name);
	ReThrowError(error);
}

/* event_lay_out, with the column's name in errors. */
static void
event_lay_out_checked(EventBuilder *builder, JsonbValue *event, EventPlan *plan,
					  const TriggerData *trigdata)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorContextCallback callback;

	callback.callback = column_error_callback;
	callback.arg = builder;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	PG_TRY();
	{
		event_lay_out(builder, event, plan, trigdata);
	}
	PG_CATCH();
	{
		rethrow_with_hint(builder, context);
	}
	PG_END_TRY();
	error_context_stack = callback.previous;
}

/*
 * The event as jsonb, palloc'ed in the current memory context, where scratch
 * memory is left too.  What is not needed may be missing.  Throws 54000 when
 * it is more than jsonb can hold.  Casts to json that users defined may run
 * inside.
 */
Jsonb *
event_build(EventPlan *plan, const TriggerData *trigdata)
{
	EventBuilder builder = {.size = 0};
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = NULL;
	JsonbValue	event;
	Jsonb	   *result;

	if (plan->has_expressions)
		builder.econtext = CreateStandaloneExprContext();

	/* the tree of many rows is several times as large as their jsonb */
	if (trigdata->tg_newtable != NULL || trigdata->tg_oldtable != NULL)
	{
		builder.is_set = true;
		context = GenerationContextCreate(caller, "feishu_flow event",
										  ALLOCSET_DEFAULT_SIZES);
		builder.scratch = AllocSetContextCreate(context, "feishu_flow event row",
												ALLOCSET_DEFAULT_SIZES);
		MemoryContextSwitchTo(context);
	}
	event_lay_out_checked(&builder, &event, plan, trigdata);
	MemoryContextSwitchTo(caller);

	result = JsonbValueToJsonb(&event);
	if (builder.econtext != NULL)
		FreeExprContext(builder.econtext, true);
	if (context != NULL)
		MemoryContextDelete(context);
	return result;
}
