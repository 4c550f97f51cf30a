EXTENSION = feishu_flow
# As in the control file, which alone says it.
EXTVERSION = $(shell sed -n "s/^default_version = '\(.*\)'$$/\1/p" $(srcdir)/feishu_flow.control)
MODULE_big = feishu_flow

OBJS = \
	src/api/arguments.o \
	src/api/batch.o \
	src/api/batch_end.o \
	src/api/change_flow.o \
	src/api/check_schema.o \
	src/api/check_server.o \
	src/api/enqueue_flow.o \
	src/api/execute_flow.o \
	src/api/execute_flows.o \
	src/api/pause_flow.o \
	src/api/pause_server.o \
	src/api/validator.o \
	src/api/wait_flow.o \
	src/app/apps.o \
	src/app/breaker.o \
	src/app/gate.o \
	src/app/limiter.o \
	src/app/limiter_keep.o \
	src/app/limits_file.o \
	src/app/options.o \
	src/app/rate.o \
	src/app/sandbox_response.o \
	src/app/server.o \
	src/app/server_catalog.o \
	src/app/token.o \
	src/app/token_ask.o \
	src/app/token_fetch.o \
	src/base/budget.o \
	src/base/compat.o \
	src/base/guc.o \
	src/base/lock_wait.o \
	src/base/nls.o \
	src/base/phrases.o \
	src/base/role_settings.o \
	src/base/sandbox_setting.o \
	src/base/sqlrun.o \
	src/base/waiters.o \
	src/base/wakeup.o \
	src/base/worker_settings.o \
	src/call/answer.o \
	src/call/call.o \
	src/call/call_end.o \
	src/call/clocks.o \
	src/call/outcome.o \
	src/call/report.o \
	src/call/sandbox.o \
	src/call/stats.o \
	src/dispatcher/arrays.o \
	src/dispatcher/attempts.o \
	src/dispatcher/claim.o \
	src/dispatcher/claim_ids.o \
	src/dispatcher/claim_rows.o \
	src/dispatcher/decide.o \
	src/dispatcher/discover.o \
	src/dispatcher/dispatcher.o \
	src/dispatcher/end_text.o \
	src/dispatcher/flight.o \
	src/dispatcher/flight_memory.o \
	src/dispatcher/flight_room.o \
	src/dispatcher/lane.o \
	src/dispatcher/lane_server.o \
	src/dispatcher/maintain.o \
	src/dispatcher/ordering.o \
	src/dispatcher/page.o \
	src/dispatcher/park.o \
	src/dispatcher/pauses.o \
	src/dispatcher/record.o \
	src/dispatcher/schedule.o \
	src/dispatcher/share.o \
	src/dispatcher/shutdown.o \
	src/dispatcher/sweep.o \
	src/dispatcher/tier.o \
	src/dispatcher/tokens.o \
	src/dispatcher/transaction.o \
	src/dispatcher/work.o \
	src/feishu_flow.o \
	src/handler/handler_call.o \
	src/handler/handler_end.o \
	src/handler/handler_mark.o \
	src/handler/handler_state.o \
	src/handler/handler_supply.o \
	src/handler/handler_worker.o \
	src/handler/retry_handler.o \
	src/http/http_authorities.o \
	src/http/http_body.o \
	src/http/http_cause.o \
	src/http/http_classify.o \
	src/http/http_conn.o \
	src/http/http_handle.o \
	src/http/http_headers.o \
	src/http/http_library.o \
	src/http/http_loop.o \
	src/http/http_peers.o \
	src/http/http_poller.o \
	src/http/http_pool.o \
	src/http/http_refused.o \
	src/http/http_sockets.o \
	src/http/http_transfer.o \
	src/http/http_url.o \
	src/launcher/dispatch_problem.o \
	src/launcher/launcher.o \
	src/launcher/launcher_ddl.o \
	src/launcher/launcher_sessions.o \
	src/launcher/launcher_slots.o \
	src/launcher/launcher_workers.o \
	src/queue/attempt.o \
	src/queue/flow_id.o \
	src/queue/insert.o \
	src/queue/notify.o \
	src/queue/on_end.o \
	src/queue/origin.o \
	src/queue/outbox.o \
	src/queue/pushdown.o \
	src/queue/record_text.o \
	src/queue/replace.o \
	src/trigger/event.o \
	src/trigger/names.o \
	src/trigger/needs.o \
	src/trigger/role.o \
	src/trigger/template.o \
	src/trigger/trigger.o \
	src/wire/codes.o \
	src/wire/mask.o \
	src/wire/wire_check.o \
	src/wire/wire_read.o \
	src/wire/wire_write.o \
	src/wire/wirejson.o \
	src/wire/wiretext.o
DATA = feishu_flow--$(EXTVERSION).sql
PG_CONFIG ?= pg_config

# -Wno-unused-parameter: PostgreSQL's own headers have unused parameters, and so have functions of ours whose arguments
# somebody else's interface says (callbacks, PG_FUNCTION_ARGS).
PG_CFLAGS = -Wextra -Wno-unused-parameter $(shell curl-config --cflags)
PG_CPPFLAGS = -I$(srcdir)/src -DFEISHU_FLOW_VERSION='"$(EXTVERSION)"'
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
$(OBJS): $(wildcard $(srcdir)/src/*.h $(srcdir)/src/*/*.h) Makefile feishu_flow.control

# Outside of the sources (make -f ../Makefile) there are no folders yet. With their whole names: make would find those
# of the sources.
FOLDERS = $(addprefix $(CURDIR)/,$(sort $(dir $(OBJS) $(MO_FILES))))
$(OBJS) $(MO_FILES): | $(FOLDERS)
$(FOLDERS):
	mkdir -p $@

# The archive for PGXN: what is committed, in a folder with the version of META.json.
DISTDIR = .
DIST = feishu_flow-$(shell sed -n 's/^\t"version": "\(.*\)",$$/\1/p' META.json)

.PHONY: dist
dist:
	git archive --format=zip --prefix=$(DIST)/ -o $(DISTDIR)/$(DIST).zip HEAD
