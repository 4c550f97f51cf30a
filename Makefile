EXTENSION = feishu_flow
EXTVERSION = 1.0
MODULE_big = feishu_flow

OBJS = \
	src/answer.o \
	src/app_share.o \
	src/batch.o \
	src/batch_end.o \
	src/breaker.o \
	src/budget.o \
	src/call.o \
	src/call_end.o \
	src/change.o \
	src/check.o \
	src/claim.o \
	src/codec.o \
	src/codec_write.o \
	src/codes.o \
	src/compat.o \
	src/discover.o \
	src/dispatch_problem.o \
	src/dispatch_tokens.o \
	src/dispatch_transaction.o \
	src/dispatcher.o \
	src/event.o \
	src/execute.o \
	src/execute_flows.o \
	src/feishu_flow.o \
	src/fetch.o \
	src/flight.o \
	src/flight_memory.o \
	src/flow_id.o \
	src/gate.o \
	src/guc.o \
	src/handler/handler_call.o \
	src/handler/handler_end.o \
	src/handler/handler_mark.o \
	src/handler/handler_name.o \
	src/handler/handler_state.o \
	src/handler/handler_supply.o \
	src/handler/handler_worker.o \
	src/handler/retry_handler.o \
	src/http.o \
	src/http_authorities.o \
	src/http_body.o \
	src/http_cause.o \
	src/http_classify.o \
	src/http_conn.o \
	src/http_handle.o \
	src/http_headers.o \
	src/http_library.o \
	src/http_peers.o \
	src/http_poller.o \
	src/http_pool.o \
	src/http_refused.o \
	src/http_sockets.o \
	src/http_transfer.o \
	src/insert.o \
	src/install.o \
	src/lane.o \
	src/launcher.o \
	src/launcher_ddl.o \
	src/launcher_sessions.o \
	src/launcher_slots.o \
	src/launcher_workers.o \
	src/limiter.o \
	src/limiter_keep.o \
	src/limiter_slots.o \
	src/limits_file.o \
	src/lock_wait.o \
	src/maintain.o \
	src/mask.o \
	src/names.o \
	src/needs.o \
	src/news.o \
	src/nls.o \
	src/options.o \
	src/ordering.o \
	src/origin.o \
	src/outbox.o \
	src/outcome.o \
	src/pause.o \
	src/phrases.o src/pushdown.o \
	src/rate.o \
	src/record.o \
	src/record_text.o \
	src/report.o \
	src/request.o \
	src/role.o \
	src/role_settings.o \
	src/schedule.o \
	src/server.o \
	src/server_catalog.o \
	src/sqlrun.o \
	src/stats.o \
	src/stop.o \
	src/sweep.o \
	src/template.o \
	src/token.o \
	src/token_ask.o \
	src/trigger.o \
	src/wait.o \
	src/waiters.o \
	src/wakeup.o \
	src/wirejson.o \
	src/wiretext.o \
	src/worker_settings.o
DATA = feishu_flow--1.0.sql
PG_CONFIG ?= pg_config

# -Wno-unused-parameter: PostgreSQL's own headers have unused parameters, and so have functions of ours whose arguments
# somebody else's interface says (callbacks, PG_FUNCTION_ARGS).
PG_CFLAGS = -Wextra -Wno-unused-parameter $(shell curl-config --cflags)
PG_CPPFLAGS = -I$(srcdir)/src
SHLIB_LINK = $(shell curl-config --libs) -lz

# PostgreSQL was built by gcc and hands gcc's options down.
ifneq ($(findstring clang,$(CC)),)
PG_CFLAGS += -Wno-unknown-warning-option -Wno-ignored-optimization-argument -Wno-ignored-attributes
endif

# Warnings are errors where the project is tested, and nowhere else.
ifdef CI
PG_CFLAGS += -Werror
endif

# Without gettext's tools messages are English only.
ifeq ($(shell command -v msgfmt),)
override enable_nls = no
endif

# No bitcode: nothing here is worth inlining into a query, and building it
# needs the very clang that PostgreSQL was built with.
override with_llvm = no

REGRESS = extension options privileges arguments errors out_params execute_flows trigger
REGRESS_OPTS = --inputdir=. --outputdir=. --encoding=UTF8 --no-locale

PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# A header is everybody's: no object is older than any of them.
$(OBJS): $(wildcard src/*.h src/*/*.h) Makefile

# The archive for PGXN: what is committed, in a folder with the version of META.json.
DISTDIR = .
DIST = feishu_flow-$(shell sed -n 's/^\t"version": "\(.*\)",$$/\1/p' META.json)

.PHONY: dist
dist:
	git archive --format=zip --prefix=$(DIST)/ -o $(DISTDIR)/$(DIST).zip HEAD
