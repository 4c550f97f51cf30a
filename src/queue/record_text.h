/*-------------------------------------------------------------------------
 *
 * src/queue/record_text.h
 *	  What the queue tells of an end: text for the columns error, report and hint.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_RECORD_TEXT_H
#define FEISHU_RECORD_TEXT_H

/* All static. */
extern const char *record_lost_text(void);
extern const char *record_expired_text(void);
extern const char *record_expired_hint(void);
extern const char *record_unconfirmed_hint(void);
extern const char *record_not_ours_text(void);

#endif							/* FEISHU_RECORD_TEXT_H */
