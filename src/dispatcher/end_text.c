/*-------------------------------------------------------------------------
 *
 * src/dispatcher/end_text.c
 *	  The text of a flight's end, for the columns error, report and hint.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/nls.h"
#include "call/report.h"
#include "dispatcher/decide.h"
#include "queue/record_text.h"

/* What is said of a flow that is given up, after what the outcome says. */
static void
add_text(FlightEnd *end, char *error, char *report)
{
	end->error = error;
	end->report = psprintf("%s\n%s", end->report, report);
}

/*
 * Fill in the text of an end, of which there is none yet but that of an error; the
 * outcome is that of its call, or NULL.
 */
void
end_text_fill(FlightEnd *end, const FlightFacts *facts, const FlowOutcome *outcome)
{
	const char *text;

	if (outcome != NULL && outcome->sqlstate != 0)
	{
		end->error = report_sentence(outcome);
		end->report = report_lines(outcome);
		end->hint = report_hint(outcome);
	}
	switch (end->reason)
	{
		case END_OF_ATTEMPTS:
			add_text(end, psprintf(_("%s; given up after %d attempts"), end->error, end->attempts),
					 psprintf(_("Given up after %d attempts."), end->attempts));
			break;
		case END_OF_TIME:
			add_text(end, psprintf(_("%s; given up because it expires"), end->error),
					 _("Given up because it expires."));
			break;
		case END_COPIED:
			end->error = pstrdup(record_not_ours_text());
			break;
		case END_EXPIRED:
			/* what went wrong at the last attempt, if there was one, still matters */
			text = record_expired_text();
			end->error = facts->last_error == NULL ? pstrdup(text) :
				psprintf("%s%s", facts->last_error, psprintf(_("; %s"), text));
			end->report = psprintf("%s\n%s", text, facts->last_error ? facts->last_error : "");
			end->hint = pstrdup(record_expired_hint());
			break;
		case END_EXHAUSTED:
			text = record_lost_text();
			end->error = psprintf(_("%s; given up after %d attempts"),
								  facts->last_error ? facts->last_error : text, end->attempts);
			end->report = psprintf("%s\n%s", text, end->error);
			break;
		case END_TOO_LARGE:
			end->error = psprintf(_("the request is too large to be sent: with all digits of its numbers it has more than %d kB, which is feishu_flow.max_request_size"),
								  facts->max_kilobytes);
			break;
		case END_BY_OUTCOME:
		case END_BY_ERROR:
		case END_UNTRIED:
			break;
	}
	if (end->state == OUTBOX_UNCONFIRMED)
		end->hint = pstrdup(record_unconfirmed_hint());
}
