"""A server of S3 in this process."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


class S3:
    """moto's server in this process; `fails` decides which requests break off."""

    def __init__(self) -> None:
        self.fails: Callable[[str, str], bool] = lambda method, path: False
        app = DomainDispatcherApplication(create_backend_app)

        def breakable(environ: Any, start_response: Any) -> Any:
            if self.fails(environ["REQUEST_METHOD"], environ["PATH_INFO"]):
                half = int(environ.get("CONTENT_LENGTH") or 0) // 2
                environ["wsgi.input"].read(half)
                start_response("403 Forbidden", [])  # an answer that no client tries again
                return [b""]
            return app(environ, start_response)

        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        self.server = make_server("127.0.0.1", 0, breakable, threaded=True)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        self.address = f"127.0.0.1:{self.server.server_port}"
        self.client = boto3.client(
            "s3", endpoint_url=f"http://{self.address}", region_name="us-east-1"
        )
        bucket = f"bucket-{self.server.server_port}"  # all servers of a process share objects
        self.client.create_bucket(Bucket=bucket)
        self.uri = (
            f"s3://{bucket}/runs?endpoint_override={self.address}&scheme=http&region=us-east-1"
        )

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
