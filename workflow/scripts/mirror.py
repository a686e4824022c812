"""Keeps a run's artifacts in a bucket: `python workflow/scripts/mirror.py push|pull URL RESULTS`.

Run in the working folder. The keys of a bucket come from where boto3 looks for them, the endpoint
of a server that is not Amazon's from AWS_ENDPOINT_URL. URL may be a folder.
"""

from __future__ import annotations

import sys

from pipeline_lib.errors import VitAtlasError
from pipeline_lib.mirror import open_bucket, pull, push

USAGE = "usage: python workflow/scripts/mirror.py push|pull s3://BUCKET/FOLDER results/RUN"


def main(arguments: list[str]) -> None:
    if len(arguments) < 2 or arguments[0] not in ("push", "pull"):
        sys.exit(USAGE)
    verb, url, *parts = arguments
    bucket = open_bucket(url)
    try:
        names = push(".", bucket, *(parts or ["results"])) if verb == "push" else pull(bucket, ".")
    except VitAtlasError as error:
        sys.exit(str(error))
    print(f"{len(names)} files copied")


if __name__ == "__main__":
    main(sys.argv[1:])
