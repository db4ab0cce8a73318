"""A server with Google's XML API: gcs.py PORT

That API is S3's but for its credentials and the name of the condition under which an object is
made, which is translated here for moto.
"""
import sys

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

S3_CREDENTIALS = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, Signature=0"
s3 = DomainDispatcherApplication(create_backend_app)


def gcs(environ, start_response):
    environ["HTTP_AUTHORIZATION"] = S3_CREDENTIALS
    if environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None) == "0":
        environ["HTTP_IF_NONE_MATCH"] = "*"
    return s3(environ, start_response)


run_simple("127.0.0.1", int(sys.argv[1]), gcs, threaded=True)
