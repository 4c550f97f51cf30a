/*-------------------------------------------------------------------------
 *
 * fuzz_target.h
 *	  One input of the fuzz: bytes of a peer, and what must hold for them.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * test/fuzz/fuzz_target.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_FUZZ_TARGET_H
#define FEISHU_FUZZ_TARGET_H

/*
 * Give the codec an input and check what it makes of it.  Throws when something
 * that must hold does not, or when the codec throws what it must not; the
 * database encoding is as before, even then.  Needs a transaction, and a client
 * encoding of LATIN1.
 */
extern void fuzz_check_input(const char *data, size_t size);

#endif							/* FEISHU_FUZZ_TARGET_H */
