EXTENSION = feishu_flow
EXTVERSION = 1.0
MODULE_big = feishu_flow

OBJS = \
	src/call.o \
	src/codec.o \
	src/codec_write.o \
	src/codes.o \
	src/compat.o \
	src/execute.o \
	src/feishu_flow.o \
	src/fetch.o \
	src/guc.o \
	src/http.o \
	src/http_transfer.o \
	src/options.o \
	src/request.o \
	src/server.o \
	src/token.o \
	src/waitset.o \
	src/wirejson.o \
	src/wiretext.o
DATA = feishu_flow--1.0.sql
PG_CONFIG ?= pg_config

# -Wno-unused-parameter: PostgreSQL's own headers have unused parameters.
PG_CFLAGS = -Wextra -Wno-unused-parameter $(shell curl-config --cflags)
SHLIB_LINK = $(shell curl-config --libs)

# PostgreSQL was built by gcc and hands gcc's options down.
ifneq ($(findstring clang,$(CC)),)
PG_CFLAGS += -Wno-unknown-warning-option -Wno-ignored-optimization-argument -Wno-ignored-attributes
endif

# Warnings are errors where the project is tested, and nowhere else.
ifdef CI
PG_CFLAGS += -Werror
endif

# No bitcode: nothing here is worth inlining into a query, and building it
# needs the very clang that PostgreSQL was built with.
override with_llvm = no

REGRESS = extension options privileges arguments errors out_params
REGRESS_OPTS = --inputdir=. --outputdir=. --encoding=UTF8 --no-locale

PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# A header is everybody's: no object is older than any of them.
$(OBJS): $(wildcard src/*.h) Makefile
