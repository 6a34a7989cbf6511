"""The control plane of a cluster as a process: what the operator's pod runs."""

from __future__ import annotations

import asyncio

from prometheus_client import REGISTRY, start_http_server

from retrieval_operator.adapters.kubernetes.api import MANAGER
from retrieval_operator.cli.exits import Exit, leave
from retrieval_operator.cli.shared import told
from retrieval_operator.settings import Settings, load_settings
from retrieval_operator.telemetry import ObjectStates, configure_foreign_logging, configure_logging


@told
def run() -> None:
    """Be the control plane of a cluster until SIGTERM: KUBECONFIG's, or the one whose pod this is.

    Settings are environment variables, RETRIEVAL_OPERATOR_*. A second operator waits for the Lease of the first if both
    keep it in one namespace: their pods', or RETRIEVAL_OPERATOR_OWN_NAMESPACE, which is needed outside of a pod.

    For example:
      RETRIEVAL_OPERATOR_OWN_NAMESPACE=ops retrieval-operator kubernetes run
    """
    settings = load_settings()
    configure_logging(settings.log_format, settings.log_level)
    configure_foreign_logging()
    asyncio.run(_run(settings))


async def _run(settings: Settings) -> None:
    # Half a second and 50 MB that no other command needs.
    from retrieval_operator import kopf_app, kubernetes_mode  # noqa: PLC0415
    from retrieval_operator.adapters.kubernetes.client import connected  # noqa: PLC0415
    from retrieval_operator.adapters.kubernetes.lease import LeaseLost  # noqa: PLC0415

    async with connected(MANAGER) as client:
        mode = kubernetes_mode.KubernetesMode(settings, client)
        if settings.metrics_port:
            REGISTRY.register(ObjectStates(mode.statuses, kubernetes_mode.now))
            start_http_server(settings.metrics_port)
        try:
            await kopf_app.serve(mode)
        except LeaseLost as error:
            leave(Exit.NOT_REACHED, f"stopped: {error}")
