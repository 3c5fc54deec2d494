"""The core of every Solon client: encodes the group's vector into the reply to a task."""

from collections.abc import Mapping
from types import MappingProxyType

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from solon_fl.coding.digests import share_digests
from solon_fl.coding.sections import padded, spread
from solon_fl.errors import ConfigurationError
from solon_fl.task import ARRAYS, DIGESTS, SHARE, SILO_QUERY, SolonTask, share_name
from solon_fl.wire import coded_sizes, to_array

__all__ = ["answer_silo_queries", "share_reply", "without_state"]

NOTHING: Mapping[str, MetricRecord | ConfigRecord] = MappingProxyType({})


def share_reply(
    message: Message, task: SolonTask, vector: Tensor, beside: Mapping[str, MetricRecord | ConfigRecord] = NOTHING
) -> Message:
    """Return the reply with this node's share of the group's vector and, if the task asks for them, digests of all.

    Parameters
    ----------
    message : Message
        The server's message.
    task : SolonTask
        The task in that message.
    vector : Tensor, (task.dim,), any float dtype, any device
        The group's gradient or model change. It is encoded on its device; only shares are copied to the host. It may
        be padded already, as a `GradientVector` is; otherwise it is copied to pad it.
    beside : mapping, optional
        Further records of the reply, by name. They are unprotected, and no training depends on them. The server reports
        the median of a "loss" in a MetricRecord.

    Raises
    ------
    ConfigurationError
        If the vector's length does not fit the server's model, or if a further record has the name of the share or the
        digests.
    """
    if taken := sorted({SHARE, DIGESTS} & set(beside)):
        raise ConfigurationError(
            f"records beside the share must not be named {SHARE!r} or {DIGESTS!r}; got {taken}; choose other names."
        )
    sizes = coded_sizes(message.content.array_records[ARRAYS], task.frozen)
    code = task.make_code()
    if vector.numel() not in (task.dim, sum(padded(size, code.multiple) for size in sizes)):
        raise ConfigurationError(
            f"the server's model has dim={task.dim} floating-point entries that are not frozen; got a vector of "
            f"{vector.numel()}; server and nodes must build the same model."
        )
    vector = spread(vector.reshape(-1), sizes, code.multiple)
    shares = {share_name(slot): to_array(code.encode(vector, slot)) for slot in task.also}
    content = RecordDict({SHARE: ArrayRecord({SHARE: to_array(code.encode(vector, task.slot)), **shares}), **beside})
    if task.verification == "digest":
        content[DIGESTS] = ConfigRecord({DIGESTS: share_digests(code, vector, task.digest_key)})
    return Message(content, reply_to=message)


def without_state(context: Context) -> Context:
    """Return a node's context with an empty state, because the nodes' states differ once one of them missed a round."""
    return Context(
        run_id=context.run_id,
        node_id=context.node_id,
        node_config=context.node_config,
        state=RecordDict(),
        run_config=context.run_config,
    )


def answer_silo_queries(app: ClientApp, node_config_key: str = "silo") -> None:
    """Let a ClientApp tell the server its node's silo (for ``grouping="silo"``).

    Parameters
    ----------
    app : ClientApp
        The app, which gets a query function. Apps from `SolonClientMixin.client_app` already have it.
    node_config_key : str
        Entry of the node's config that names the silo: ``flower-supernode --node-config 'silo="hospital-a"'``.
    """

    @app.query(SILO_QUERY.partition(".")[2])
    def silo(message: Message, context: Context) -> Message:
        name = context.node_config.get(node_config_key)
        if not isinstance(name, str):
            raise ConfigurationError(
                f"grouping='silo' needs the node's config to name its silo; got {node_config_key}={name!r}; "
                f"start the SuperNode with --node-config '{node_config_key}=\"...\"'."
            )
        return Message(RecordDict({"silo": ConfigRecord({"name": name})}), reply_to=message)
