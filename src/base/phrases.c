/*-------------------------------------------------------------------------
 *
 * src/base/phrases.c
 *	  Phrases by which clients recognise a lost database connection.
 *
 * Frameworks look into the text of an error for words like "reset by peer": then
 * they take their connection to the database for lost and run the statement
 * again, which would start a flow twice.  Our own messages do without such words
 * (a test sees to that).  Text of others that a message shows passes through here
 * (see answer_mask_text), and becomes "reset_by peer": as readable, but not what
 * they look for.
 *
 * The parts below are in lower case, and each holds a character that is no letter
 * and no digit: that one is replaced.  At least one of them is in every phrase of
 * test/data/lost_connections.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/phrases.h"

static const char *const parts[] = {
	/* connections */
	"bad connection",
	"broken pipe",
	"by peer",
	"client was closed",
	"client was disconnected",
	"closed network",
	"closed unexpectedly",
	"conn busy",
	"conn closed",
	"connection already",
	"connection attempt",
	"connection ended",
	"connection error",
	"connection failed",
	"connection has been",
	"connection is",
	"connection limit",
	"connection lost",
	"connection not",
	"connection refused",
	"connection reset",
	"connection slots",
	"connection terminated",
	"could not connect",
	"could not receive data",
	"could not send data",
	"could not translate",
	"cursor already",
	"dead or",
	"failed to connect",
	"gone away",
	"host is unreachable",
	"i/o timeout",
	"link failure",
	"login timeout",
	"losed the connection",
	"lost connection",
	"network error",
	"network is unreachable",
	"no connection could",
	"no connection to",
	"no route to",
	"no such file",
	"no such host",
	"not responding",
	"packets out",
	"premature end",
	"query_wait_timeout",
	"reach database server",
	"reading result",
	"server closed",
	"server is shutting",
	"service not known",
	"startup message",
	"system is shutting",
	"system is starting",
	"tcp provider",
	"temporary failure",
	"terminate due",
	"terminating connection",
	"timed out",
	"unexpected eof",
	"went away",
	"while sending",
	"with errno",
	"writing data",

	/* TLS */
	"decryption failed",
	"ssl error",
	"ssl operation",
	"ssl syscall",
	"unknown $curl",

	/* states of a server, and of a cluster */
	"available for branch",
	"being resharded",
	"cached plan",
	"conflict with recovery",
	"no healthy",
	"not serving",
	"ora-03114",
	"read only sql",
	"read-only option",
	"upgrade mode",

	/* deadlocks and locks */
	"database file is",
	"database is locked",
	"database table is",
	"deadlock avoided",
	"deadlock detected",
	"deadlock found",
	"deadlock victim",
	"detected deadlock",
	"has changed since",
	"lock wait",
	"table in the database",

	/* how drivers begin their messages */
	"() on null",
	"[hy000]",
	"pqconsumeinput()"
};

/* Break one, with the end of the text beyond it. */
static void
break_part(char *found, const char *part)
{
	size_t		at = 0;

	while (isalnum((unsigned char) part[at]))
		at++;
	found[at] = found[at] == '_' ? '-' : '_';
}

/* Break them in text that is not ours, in place; NULL is allowed. */
void
phrases_break(char *text)
{
	if (text == NULL)
		return;
	for (char *p = text; *p != '\0'; p++)
	{
		for (int i = 0; i < (int) lengthof(parts); i++)
		{
			if (pg_strncasecmp(p, parts[i], strlen(parts[i])) == 0)
				break_part(p, parts[i]);
		}
	}
}
