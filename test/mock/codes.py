"""The platform's codes and what it says with them."""

OPEN_SITE = "https://open.feishu.cn"
SCOPE = "app_engine:flow:write"

# The platform's codes: HTTP status and msg. Clients must not branch on msg; it is here for people.
CODES = {
    1500: (500, "internal error"),
    2200: (500, "internal service error"),
    10003: (200, "invalid param"),
    10014: (200, "app secret invalid"),
    10015: (200, "app_id invalid"),
    212100: (400, "app not install"),
    2320001: (400, "param is invalid"),
    99991400: (429, "request trigger frequency limit"),
    99991401: (400, "request denied: the IP address is not in the app's allow list"),
    99991403: (429, "the monthly quota of API calls is used up"),
    99991543: (400, "app_id or app_secret error"),
    99991661: (400, "Missing access token for authorization. Please make a request with token attached."),
    99991662: (400, "the app is disabled"),
    99991663: (400, "Invalid access token for authorization. Please make a test attempt with the correct token."),
    99991668: (400, "Invalid access token for authorization. This API does not accept a user_access_token."),
    99991671: (400, "Invalid access token for authorization. Access tokens must start with 't-' or 'u-'."),
    99991672: (400, f"Access denied. One of the following scopes is required: [{SCOPE}]."),
    99991673: (400, "the app is not available in this tenant"),
    99991676: (400, "the token has no permission for this resource"),
    99992402: (400, "field validation failed"),
}
HELPFUL_CODES = {99991401, 99991662, 99991672, 99991673, 99991676}  # refusals that carry error.helps
# OAuth refusals: HTTP status, error, error_description.
OAUTH_CODES = {
    20002: (400, "invalid_client", "The client secret is invalid."),
    20036: (400, "unsupported_grant_type", "The grant type is not supported."),
    20048: (400, "invalid_client", "The app does not exist."),
    20050: (500, "server_error", "An unexpected server error occurred. Please retry your request."),
    20063: (400, "invalid_request", "The request is malformed or lacks a required parameter."),
    20070: (400, "invalid_request", "Basic authentication and client_secret must not be used at once."),
    20072: (503, "temporarily_unavailable", "The server is temporarily unavailable. Please retry your request."),
}
INNER_MSGS = {
    "k_ec_000009": "no permission",
    "k_wf_ec_200036": "the flow does not exist",
    "k_wf_ec_2001008": "the idempotent key has been used",
    "k_wf_ec_2001001": "the parameter of the flow is invalid",
    "k_ec_000054": "the execution timed out",
}
BAD_PARAM = 2320001  # the one code of the document
# Of all flow_ids, these do not exist; the second is what feishu.check_server asks for.
NO_SUCH_FLOWS = {"noSuchFlow", "feishu_flow_check_server"}
