"""Makes the container of the tests: container.py URL (azurite with its published account)."""
import sys

from azure.storage.blob import BlobServiceClient

NAME = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
BlobServiceClient(
    f"{sys.argv[1]}/{NAME}", credential={"account_name": NAME, "account_key": KEY}
).create_container("lapflow")
