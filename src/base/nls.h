/*-------------------------------------------------------------------------
 *
 * src/base/nls.h
 *	  Messages in the user's language.
 *
 * To be included, after postgres.h, by each file with a text for users: it
 * makes ereport, errcontext and _() look into the extension's catalog (po/)
 * and not into the server's.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_NLS_H
#define FEISHU_NLS_H

#undef TEXTDOMAIN
#define TEXTDOMAIN feishu_text_domain()
#undef _
#define _(x) dgettext(TEXTDOMAIN, x)

extern const char *feishu_text_domain(void);

#endif							/* FEISHU_NLS_H */
