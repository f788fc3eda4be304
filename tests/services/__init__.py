"""The object stores that tests run against, on this machine: real servers where there are any, and one of our own for GCS.

All listen on the loopback address only, on ports that were free, report to nobody, and end with the test run, however
that ends (`services.keeper`).
"""

from services.process import Service, ServiceMissing
from services.proxy import Proxy
from services.servers import AZURE_KEY, S3, Azure, Gcs, Moto, Sink, Sparse

__all__ = ["AZURE_KEY", "S3", "Azure", "Gcs", "Moto", "Proxy", "Service", "ServiceMissing", "Sink", "Sparse"]
