"""Names that users type -> checkpoints, drafting method, K and revision.

`resolve("gpt-oss-120b", "lk-eagle3")` needs no network; `fetch` builds the zoo or pins a hub revision. Importing this
package imports none of torch, transformers and huggingface_hub.
"""

from .fetch import fetch, fetch_draft
from .fit import check_fit, check_k
from .resolve import listing, resolve, resolve_draft
from .schema import Draft, Pair, Sizes, Target

__all__ = [
    "Draft",
    "Pair",
    "Sizes",
    "Target",
    "check_fit",
    "check_k",
    "fetch",
    "fetch_draft",
    "listing",
    "resolve",
    "resolve_draft",
]
