# nls.mk: message catalogs, see nls-global.mk of PostgreSQL
CATALOG_NAME     = feishu_flow
AVAIL_LANGUAGES  = zh_CN
GETTEXT_FILES    = $(wildcard src/*.c)
GETTEXT_TRIGGERS = $(BACKEND_COMMON_GETTEXT_TRIGGERS) report_argument:2 LOG_LINE
GETTEXT_FLAGS    = $(BACKEND_COMMON_GETTEXT_FLAGS) LOG_LINE:1:c-format
