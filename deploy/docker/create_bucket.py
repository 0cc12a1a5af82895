"""Creates the bucket for artifacts if it does not exist. The service `bucket` runs it once at each start of the stack.

Environment: S3_BUCKET, MLFLOW_S3_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY.
"""

from __future__ import annotations

import os
import sys

import boto3
from botocore.exceptions import ClientError


def main() -> int:
    bucket = os.environ["S3_BUCKET"]
    store = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
    try:
        store.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 404:
            raise
        store.create_bucket(Bucket=bucket)
    print(f"bucket {bucket} is ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
