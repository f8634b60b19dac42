"""HF_ENDPOINT or a proxy variable holds something that is no address: quotation marks, no scheme, a blank."""

from __future__ import annotations

from collections.abc import Iterator

from mgpu_checks.hub import adapters, is_local_path, is_offline, models, value_of
from mgpu_doctor.authoring import (
    Case,
    Edit,
    Example,
    Finding,
    Fix,
    Launch,
    Reference,
    Rule,
    Severity,
    Signature,
    Span,
    Unknown,
    Variable,
    dataclass,
    is_before,
    pattern,
    replace,
    report,
)

_TRAIN = "torchrun --nproc_per_node 2 train.py --model_name_or_path org/base-7b"

RULE = Rule(
    code="MGD409",
    slug="endpoint-malformed",
    title="The address of the hub or the proxy is malformed",
    severity=Severity.ERROR,
    summary="HF_ENDPOINT or a proxy variable has quotation marks, blanks or no usable scheme",
    why=(
        "huggingface_hub puts HF_ENDPOINT in front of every path as it is. Without `http://` or `https://` at its "
        'very beginning no request is made: "Invalid URL \'hf-mirror.com/…\': No scheme supplied" or "Request URL is '
        "missing an 'http://' or 'https://' protocol\". A proxy may go without a scheme, but not with quotation marks, "
        "with one slash, or with `socks://`."
    ),
    bad=(
        Example("no scheme", "HF_ENDPOINT=hf-mirror.com " + _TRAIN),
        Example("one slash", "export HF_ENDPOINT=https:/hf-mirror.com\n" + _TRAIN),
        Example("quotation marks that were kept", _TRAIN, facts={"env": {"HF_ENDPOINT": '"https://hf-mirror.com"'}}),
        Example(
            "a blank at the end, with a huggingface_hub that minds",
            "HF_ENDPOINT='https://hf-mirror.com ' " + _TRAIN,
        ),
        Example("a proxy with quotation marks", _TRAIN, facts={"env": {"HTTPS_PROXY": "'http://10.0.0.1:3128'"}}),
        Example(
            "a socks proxy without the package for it",
            "ALL_PROXY=socks5://127.0.0.1:1080 " + _TRAIN,
        ),
    ),
    good=(
        Example("a mirror", "HF_ENDPOINT=https://hf-mirror.com " + _TRAIN),
        Example("a slash at the end", "HF_ENDPOINT=https://hf-mirror.com/ " + _TRAIN),
        Example("a path behind it", "HF_ENDPOINT=http://10.0.0.1:8081/repository/hf " + _TRAIN),
        Example("a proxy without scheme", "HTTPS_PROXY=10.0.0.1:3128 http_proxy=proxy.lan:3128 " + _TRAIN),
        Example("a proxy with a user", "HTTPS_PROXY=http://me:secret@proxy.lan:3128/ " + _TRAIN),
        Example("no proxy", "HTTPS_PROXY= " + _TRAIN),
        Example("not known", 'HF_ENDPOINT="$MIRROR" ' + _TRAIN),
        Example("nothing is asked for", "HF_HUB_OFFLINE=1 HF_ENDPOINT=hf-mirror.com " + _TRAIN),
        Example(
            "a blank at the end, with a huggingface_hub that takes it",
            "HF_ENDPOINT='https://hf-mirror.com ' " + _TRAIN,
            facts={"packages": {"huggingface-hub": "1.33.0"}},
        ),
        Example(
            "a socks proxy with the package for it",
            "ALL_PROXY=socks5://127.0.0.1:1080 " + _TRAIN,
            facts={"packages": {"huggingface-hub": "0.33.0", "pysocks": "1.7.1"}},
        ),
    ),
    sources=(
        Reference(
            "huggingface_hub 0.36.2 (requests), 1.33.0 (httpx) and 2.4.0 (httpx2), HF_ENDPOINT",
            "no scheme, another scheme, quotation marks, one slash, nothing at all: each request fails; a slash at the "
            "end is taken off; a blank at the end fails with requests alone, one in front with httpx alone",
            ran=True,
        ),
        Reference(
            "huggingface_hub 0.36.2, 1.33.0 and 2.4.0, HTTPS_PROXY",
            "no scheme works; quotation marks, a port that is no number, http:host and socks:// fail; socks5:// needs "
            "PySocks (requests) or socksio (httpx); a malformed HTTP_PROXY stops httpx for https too, not requests",
            ran=True,
        ),
        Reference(
            "huggingface_hub 0.24.7 and 0.33.0, constants.py ENDPOINT",
            "0.24.7 takes an empty HF_ENDPOINT for none, 0.33.0 for an address",
        ),
    ),
    fix="Write the address as https://host, without quotation marks in the value",
    fixable=False,
    signatures=(
        Signature(
            r"Request URL is missing an 'http://' or 'https://' protocol",
            "huggingface_hub 1.33.0 with httpx 0.28.1, HF_ENDPOINT=hf-mirror.com",
            "httpx.UnsupportedProtocol: Request URL is missing an 'http://' or 'https://' protocol.",
        ),
        Signature(
            r"Invalid URL '[^']*': No (?:scheme|host) supplied",
            "huggingface_hub 0.36.2 with requests 2.34.2, HF_ENDPOINT=hf-mirror.com",
            "requests.exceptions.MissingSchema: Invalid URL 'hf-mirror.com/api/models/org/base-7b': No scheme "
            "supplied. Perhaps you meant https://hf-mirror.com/api/models/org/base-7b?",
        ),
        Signature(
            r"""No connection adapters were found for '["'\u201c\w.]""",
            "huggingface_hub 0.36.2 with requests 2.34.2, HF_ENDPOINT with quotation marks",
            "requests.exceptions.InvalidSchema: No connection adapters were found for "
            "'\"https://hf-mirror.com\"/api/models/org/base-7b'",
        ),
        Signature(
            r"Unknown scheme for proxy URL",
            "huggingface_hub 1.33.0 with httpx 0.28.1, HTTPS_PROXY with quotation marks, or socks://",
            "ValueError: Unknown scheme for proxy URL URL('socks://127.0.0.1:1080')",
        ),
        Signature(
            r"Missing dependencies for SOCKS support|the 'socksio' package is not installed",
            "requests 2.34.2 without PySocks; httpx 0.28.1 without socksio",
            "requests.exceptions.InvalidSchema: Missing dependencies for SOCKS support.",
        ),
        Signature(
            r"Please check proxy URL\. It is malformed",
            "requests 2.34.2, HTTPS_PROXY=http:/proxy",
            "requests.exceptions.InvalidProxyURL: Please check proxy URL. It is malformed and could be missing the "
            "host.",
        ),
    ),
)

_ENDPOINT = "HF_ENDPOINT"
_SECURE = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
_PROXIES = (*_SECURE, "HTTP_PROXY", "http_proxy")
_QUOTES = "\"'`\u2018\u2019\u201c\u201d"
_HOST = r"(?:\[[0-9A-Fa-f:.%\w]+\]|[\w*-][\w.*-]*)"
_GOOD_ENDPOINT = pattern(rf"(?i)https?://(?:[^/@]*@)?{_HOST}(?::\d+)?(?:[/?#].*)?")
_GOOD_PROXY = pattern(rf"(?i)(?:https?://|socks(?:4a?|5h?)://)?(?:[^/]*@)?{_HOST}(?::\d+)?/?")
_SOCKS = pattern(r"(?i)socks(\w*)://")
_USER = pattern(r"://[^/]*@")
_SCHEME_SLIP = pattern(r"(?i)(https?)(?::/?|//)(?=[^/:])")


@dataclass(frozen=True, slots=True)
class _Fault:
    """What is wrong with a value, and the value that was meant; None when nobody can tell."""

    what: str
    meant: str | None
    severity: Severity = Severity.ERROR


def find(case: Case) -> Iterator[Finding]:
    """One finding for each variable whose value is no address, where a job gets it."""
    seen: set[object] = set()
    for launch in case.launches:
        if is_offline(case, launch) is not False:
            continue
        for name in (_ENDPOINT, *_PROXIES):
            value = value_of(case, launch, name)
            variable = launch.command.variable(name)
            place = variable.location if variable is not None else None
            if not isinstance(value, str) or (name, value, place) in seen:
                continue
            seen.add((name, value, place))
            if place is not None and len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]:
                continue  # quotation marks that stand in the text itself have a rule of their own
            fault = _endpoint(case, value) if name == _ENDPOINT else _proxy(case, launch, name, value)
            if fault is not None:
                yield _report(launch, name, value, fault, variable if place is not None else None)


def _endpoint(case: Case, value: str) -> _Fault | None:
    if not value:
        takes_it = is_before(_hub(case), 0, 33)
        return None if takes_it is not False else _Fault("is empty, which is no address", None)
    if value != value.strip():
        return _blank(case, value)
    if _GOOD_ENDPOINT.fullmatch(value):
        return None
    return _Fault(f"is {_shown(value)}, {_why(value)}", _meant(value, "https://"))


def _blank(case: Case, value: str) -> _Fault | None:
    """A blank at an end: requests (below 1.0) minds one behind, httpx one in front."""
    by_requests = is_before(_hub(case), 1, 0)
    if by_requests is None:
        return None
    if (value != value.rstrip()) if by_requests else (value != value.lstrip()):
        return _Fault(f"is {_shown(value)} with a blank, which becomes part of the address", value.strip())
    return None


def _proxy(case: Case, launch: Launch, name: str, value: str) -> _Fault | None:
    if not value or value_of(case, launch, "NO_PROXY") == "*" or value_of(case, launch, "no_proxy") == "*":
        return None
    by_requests = is_before(_hub(case), 1, 0)
    if name not in _SECURE and by_requests:
        return None  # requests takes it for http:// alone, httpx stops at it whatever is asked for
    severity = Severity.WARNING if name not in _SECURE and by_requests is None else Severity.ERROR
    if value != value.strip():
        fault = _blank(case, value)
        return None if fault is None else _Fault(fault.what, fault.meant, severity)
    socks = _SOCKS.match(value)
    if socks is not None and not socks.group(1):
        what = f"is {_shown(value)}: the scheme is socks5, socks alone is refused"
        return _Fault(what, "socks5" + value[len("socks") :], severity)
    if not _GOOD_PROXY.fullmatch(value):
        return _Fault(f"is {_shown(value)}, {_why(value)}", _meant(value, "http://"), severity)
    return _without_socks(case, value, severity) if socks is not None else None


def _without_socks(case: Case, value: str, severity: Severity) -> _Fault | None:
    """A proxy of a kind for which the HTTP library needs another package, where it is known to be absent."""
    packages, by_requests = case.facts.packages, is_before(_hub(case), 1, 0)
    if by_requests is None or isinstance(packages, Unknown):
        return None
    package = "pysocks" if by_requests else "socksio"
    if package in packages:
        return None
    return _Fault(
        f"is {_shown(value)}, but the package {package}, which such a proxy needs, is not there", None, severity
    )


def _hub(case: Case) -> str | None:
    """The known release of huggingface_hub."""
    version = case.facts.package_version("huggingface-hub")
    return version if isinstance(version, str) else None


def _why(value: str) -> str:
    if value[0] in _QUOTES or value[-1] in _QUOTES:
        return "with quotation marks in it"
    if "://" not in value:
        return "without http:// or https:// in front" if not _SCHEME_SLIP.match(value) else "whose :// is misspelt"
    return "which is no address of a host" if value.lower().startswith(("http://", "https://")) else "no HTTP address"


def _meant(value: str, scheme: str) -> str | None:
    """The value without what does not belong there, when an address is left."""
    text = value.strip().strip(_QUOTES + ";,").strip()
    text = _SCHEME_SLIP.sub(r"\1://", text, count=1) if "://" not in text else text
    if "://" not in text:
        text = scheme + text
    return text if _GOOD_ENDPOINT.fullmatch(text) else None


def _shown(value: str) -> str:
    return f"`{_masked(value)}`"


def _masked(value: str) -> str:
    """The value without the user and password that may stand in front of the host."""
    return _USER.sub("://***@", value)


def _report(launch: Launch, name: str, value: str, fault: _Fault, variable: Variable | None) -> Finding:
    asks = any(not is_local_path(given.text) for given in (*models(launch), *adapters(launch)))
    severity = fault.severity if asks else Severity.WARNING
    place = variable.location if variable is not None else None
    title = f"write {name}={_masked(fault.meant)}" if fault.meant else f"correct {name}, or unset it"
    edits: tuple[Edit, ...] = ()
    if place is not None and fault.meant is not None:
        text = place.source.slice(place.span)
        at = text.find(value)
        if value and at >= 0 and text.count(value) == 1:
            start = place.span.start + at
            edits = (replace(place.source, Span(start, start + len(value)), fault.meant),)
    commands = (f"export {name}={fault.meant}",) if place is None and fault.meant and "@" not in fault.meant else ()
    return report(
        RULE,
        f"{name} {fault.what}: no request reaches the hub.",
        place,
        subject=None if place is not None else f"{name} in the environment",
        severity=severity,
        fix=Fix(title, edits, commands),
    )
