"""The run asked the hub over the network and got no answer."""

from __future__ import annotations

from mgpu_doctor.authoring import Example, Reference, Rule, Severity, Signature, only_signatures

_NOT_CONNECTED = (
    "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached "
    "files."
)
_RETRY = "'[Errno -2] Name or service not known' thrown while requesting HEAD https://huggingface.co/org/m/config.json"

RULE = Rule(
    code="MGD408",
    slug="hub-unreachable",
    title="The hub does not answer",
    severity=Severity.ERROR,
    summary="the run tried to reach the hub and failed, and what it wanted is not in the cache",
    why=(
        "Compute nodes often have no way to the Internet. A model or data set named by its hub id is then looked for "
        "in the cache, and what is not there fails, after each rank has tried several times. transformers prints the "
        "same sentence when offline mode is on. Fill the cache where there is a network (`hf download`), point "
        "HF_ENDPOINT at a mirror, set HTTPS_PROXY, or name the model by its folder; HF_HUB_OFFLINE=1 saves the waiting "
        "when everything is in the cache."
    ),
    bad=(
        Example("transformers", log=f"{_NOT_CONNECTED}\nCheckout your internet connection.\n"),
        Example(
            "a data set",
            log=f"{_RETRY}\nRetrying in 1s [Retry 1/5].\n"
            "ConnectionError: Couldn't reach 'org/pairs' on the Hub (LocalEntryNotFoundError)\n",
        ),
    ),
    good=(
        Example("another server", log="urllib.error.URLError: <urlopen error [Errno 111] Connection refused>\n"),
        Example("a download that works", log="config.json: 100%|██████████| 659/659 [00:00<00:00, 5.20MB/s]\n"),
    ),
    sources=(
        Reference(
            "transformers 4.28.1, 4.40.0, 4.52.4, 4.57.6, 5.0.0, 5.6.0 and 5.23.0, utils/hub.py",
            '"We couldn\'t connect to … to load" when a file is neither on the hub nor in the cache',
        ),
        Reference(
            "huggingface_hub 0.36.2 and 1.33.0 with an HF_ENDPOINT that has no address",
            "each request is tried six times ('thrown while requesting HEAD …', 'Retrying in 1s [Retry 1/5]'), then "
            "'An error happened while trying to locate the file on the Hub'",
            ran=True,
        ),
    ),
    fix=(
        "fill the cache where there is a network (hf download MODEL), set HF_ENDPOINT to a mirror or HTTPS_PROXY to "
        "the proxy, or name the model by its folder with HF_HUB_OFFLINE=1"
    ),
    signatures=(
        Signature(
            r"We couldn't connect to '\S+' to load",
            "transformers 4.28.1 to 5.23.0, utils/hub.py",
            _NOT_CONNECTED,
        ),
        Signature(
            r"Connection error, and we cannot find the requested files in the cached path",
            "transformers 4.11.3, file_utils.py get_from_cache()",
            "ValueError: Connection error, and we cannot find the requested files in the cached path. Please try again "
            "or make sure your Internet connection is on.",
        ),
        Signature(
            r"An error happened while trying to locate the files? on the Hub",
            "huggingface_hub 0.20.3 to 2.4.0, file_download.py and _snapshot_download.py",
            "huggingface_hub.errors.LocalEntryNotFoundError: An error happened while trying to locate the file on the "
            "Hub and we cannot find the requested files in the local cache. Please check your connection and try again "
            "or make sure your Internet connection is on.",
        ),
        Signature(
            r"Couldn't reach '.+' on the Hub \((?!OfflineModeIsEnabled)\w+\)",
            "datasets 3.6.0 and 4.0.0, load.py",
            "ConnectionError: Couldn't reach 'org/pairs' on the Hub (LocalEntryNotFoundError)",
        ),
        Signature(
            r"HTTPSConnectionPool\(host=\\?'(?:huggingface\.co|hf\.co|hf-mirror\.com|cdn-lfs[\w.-]*)\\?', port=443\): "
            r"(?:Max retries exceeded|Read timed out)(?!.*thrown while requesting)",
            "requests 2.34.2 under huggingface_hub 0.36.2",
            "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='huggingface.co', port=443): Max retries "
            "exceeded with url: /api/models/org/m",
        ),
        Signature(
            r"thrown while requesting (?:HEAD|GET) https?://",
            "huggingface_hub 0.20.3 to 1.33.0, utils/_http.py http_backoff(), before each new try",
            _RETRY,
            weak=True,
        ),
        Signature(
            r"ConnectionError: Couldn't reach https?://",
            "datasets 1.2.1, utils/file_utils.py get_from_cache() (huggingface/datasets issue 1764)",
            "ConnectionError: Couldn't reach https://raw.githubusercontent.com/huggingface/datasets/1.2.1/dataset"
            "s/race/race.py",
        ),
        Signature(
            r"^httpx\.Connect(?:Error|Timeout)\b",
            "httpx 0.28.1 under huggingface_hub 1.33.0, or in another client",
            "httpx.ConnectError: [Errno -3] Temporary failure in name resolution",
            weak=True,
        ),
    ),
    seen=("log",),
)

find = only_signatures
