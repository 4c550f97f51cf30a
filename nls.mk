# nls.mk: message catalogs, see nls-global.mk of PostgreSQL
CATALOG_NAME     = feishu_flow
# of PostgreSQL 15; later ones read po/LINGUAS
AVAIL_LANGUAGES  = $(shell cat $(srcdir)/po/LINGUAS)
GETTEXT_FILES    = $(wildcard src/*.c src/*/*.c)
GETTEXT_TRIGGERS = $(BACKEND_COMMON_GETTEXT_TRIGGERS) report_argument:2 LOG_LINE
GETTEXT_FLAGS    = $(BACKEND_COMMON_GETTEXT_FLAGS) LOG_LINE:1:c-format
