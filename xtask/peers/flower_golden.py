"""Writes what flwr's own classes make of known records, requests and keys: crates/lora-fed/tests/data/flower/.

    pip install flwr==1.41.0
    python xtask/peers/flower_golden.py crates/lora-fed/tests/data/flower

`objects.json`: messages as trees of objects; `requests.json`: the bodies of requests and answers; `keys.json`: keys
as PEM and as OpenSSH has them. Bytes are base64.
"""

import json
import sys
from base64 import b64encode
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.error import Error
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_to_proto
from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, message_pb2, node_pb2, run_pb2, runtime_pb2, task_pb2, transport_pb2
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

RUN = 0xF123456789ABCDEF
NODE = 0xE000000000000011


def b64(data: bytes) -> str:
    return b64encode(data).decode()


def metadata(**changes) -> Metadata:
    fields = dict(
        run_id=RUN, message_id="", src_node_id=1, dst_node_id=NODE, reply_to_message_id="", group_id="3",
        created_at=1763890200.25, ttl=3600.0, message_type="train", src_task_id=7, dst_task_id=None,
    )
    return Metadata(**(fields | changes))


def arrays() -> ArrayRecord:
    return ArrayRecord({
        "l.lora_A.weight": Array(np.arange(6, dtype=np.float32).reshape(2, 3) / 2),
        "scalar": Array(np.array(-1.5)),
        "steps": Array(np.array([1, -2, 3, 2**62], dtype=np.int64)),
        "empty": Array(np.zeros((0, 3), dtype=np.float32)),
        "ünï \"\\\n\x7f\x01 😀": Array(np.array([np.float32(0.1)])),
        "same": Array(np.arange(6, dtype=np.float32).reshape(2, 3) / 2),
        "five": Array(np.ones((1, 2, 1, 2, 1), dtype=np.float64)),
    })


def config() -> ConfigRecord:
    return ConfigRecord({
        "lr": 0.25, "server-round": 3, "negative": -5, "large": 2**64 - 1, "flag": True, "off": False,
        "text": "grüße", "bytes": b"\x00\xff", "floats": [0.5, -1.0], "ints": [1, -1], "larges": [2**63, 1],
        "flags": [True, False], "texts": ["a", ""], "byte-strings": [b"", b"\x01"], "none": [], "zero": 0,
    })


def case(message: Message, contents: bool = True) -> dict:
    message.metadata.__dict__["_message_id"] = message.object_id
    objects = {k: v.deflate() for k, v in get_all_nested_objects(message).items()}
    return {
        "root": message.object_id,
        "announced": b64(message_to_proto(remove_content_from_message(message)).SerializeToString(deterministic=True)),
        "tree": b64(get_object_tree(message).SerializeToString(deterministic=True)),
        "objects": {k: b64(v) if contents else len(v) for k, v in objects.items()},
    }


def objects() -> dict:
    everything = RecordDict({
        "arrays": arrays(), "config": config(), "again": arrays(),
        "metrics": MetricRecord({"loss": 0.125, "num-examples": 942, "large": 2**63, "many": [1.5, 2.5], "counts": [3, 4]}),
    })
    reply = metadata(src_node_id=NODE, dst_node_id=1, reply_to_message_id="ab" * 32, src_task_id=None, dst_task_id=7)
    fortran = np.asfortranarray(np.arange(24, dtype=np.float64).reshape(2, 3, 4))
    return {
        "everything": case(make_message(metadata(), content=everything)),
        "reply": case(make_message(reply, content=RecordDict({"metrics": MetricRecord({"num-examples": 1})}))),
        "error": case(make_message(reply, error=Error(2, "out of memory"))),
        "nothing": case(make_message(metadata(), content=RecordDict())),
        "fortran": case(make_message(metadata(), content=RecordDict({"arrays": ArrayRecord({"f": Array(fortran)})}))),
        "chunks": case(
            make_message(metadata(), content=RecordDict({"arrays": ArrayRecord({"z": Array(np.zeros((4, 1 << 20), np.float32))})})),
            contents=False,
        ),
    }


def requests() -> dict:
    node = node_pb2.Node(node_id=NODE)
    tree = message_pb2.ObjectTree(object_id="aa" * 32, children=[message_pb2.ObjectTree(object_id="bb" * 32)])
    announced = remove_content_from_message(make_message(metadata(message_id="aa" * 32), content=RecordDict()))
    proto = message_to_proto(announced)
    all_of = {
        "register": fleet_pb2.RegisterNodeFleetRequest(public_key=b"PEM"),
        "activate": fleet_pb2.ActivateNodeRequest(public_key=b"PEM", heartbeat_interval=30.0),
        "activated": fleet_pb2.ActivateNodeResponse(node_id=NODE),
        "deactivate": fleet_pb2.DeactivateNodeRequest(node_id=NODE),
        "unregister": fleet_pb2.UnregisterNodeFleetRequest(node_id=NODE),
        "heartbeat": heartbeat_pb2.SendNodeHeartbeatRequest(node=node, heartbeat_interval=30.0),
        "heartbeat-answer": heartbeat_pb2.SendNodeHeartbeatResponse(success=True),
        "pull": fleet_pb2.PullMessagesRequest(node=node),
        "pulled": fleet_pb2.PullMessagesResponse(messages_list=[proto], message_object_trees=[tree], reconnect=fleet_pb2.Reconnect(reconnect=5)),
        "push": fleet_pb2.PushMessagesRequest(node=node, messages_list=[proto], message_object_trees=[tree], clientapp_runtime_list=[1.5]),
        "pushed": fleet_pb2.PushMessagesResponse(results={"aa" * 32: 0}, objects_to_push=["bb" * 32], session_id="s"),
        "push-object": message_pb2.PushObjectRequest(node=node, run_id=RUN, object_id="bb" * 32, object_content=b"\x00\x01", session_id="s"),
        "push-object-answer": message_pb2.PushObjectResponse(stored=True),
        "pull-object": message_pb2.PullObjectRequest(node=node, run_id=RUN, object_id="bb" * 32),
        "pull-object-answer": message_pb2.PullObjectResponse(object_found=True, object_available=True, object_content=b"\x00\x01"),
        "confirm": message_pb2.ConfirmMessageReceivedRequest(node=node, run_id=RUN, message_object_id="aa" * 32),
        "acquire": runtime_pb2.AcquireTaskRequest(supported_task_types=["flwr-serverapp"]),
        "acquired": runtime_pb2.AcquireTaskResponse(task=task_pb2.Task(task_id=7, type="flwr-serverapp", run_id=RUN, fab_hash="f"), token="t"),
        "input": runtime_pb2.PullTaskInputResponse(
            run=run_pb2.Run(run_id=RUN, fab_hash="f", override_config={
                "a.b": transport_pb2.Scalar(sint64=-4), "c": transport_pb2.Scalar(double=0.5), "d": transport_pb2.Scalar(string="x"),
                "e": transport_pb2.Scalar(bool=True), "f": transport_pb2.Scalar(uint64=2**64 - 1),
            }),
            fab=fab_pb2.Fab(hash_str="f", content=b"zip", verifications={"a": "b"}), task_id=7,
        ),
        "nodes": runtime_pb2.GetNodesResponse(nodes=[node_pb2.NodeInfo(node_id=NODE, status="online", public_key=b"PEM", name="bank")]),
        "app-push": runtime_pb2.PushAppMessagesRequest(messages_list=[proto], message_object_trees=[tree]),
        "app-pushed": runtime_pb2.PushAppMessagesResponse(message_ids=["aa" * 32], objects_to_push=["bb" * 32], session_id="s"),
        "app-pull": runtime_pb2.PullAppMessagesRequest(message_ids=["aa" * 32]),
        "app-pulled": runtime_pb2.PullAppMessagesResponse(messages_list=[proto], message_object_trees=[tree]),
        "output": runtime_pb2.PushTaskOutputRequest(sub_status="completed", details="done"),
    }
    return {name: b64(message.SerializeToString(deterministic=True)) for name, message in all_of.items()}


def keys() -> dict:
    found = {}
    for name, curve, scalar in (("p256", ec.SECP256R1(), 0xB0B), ("p384", ec.SECP384R1(), (1 << 380) + 7)):
        key = ec.derive_private_key(scalar, curve)
        private = lambda form: key.private_bytes(s.Encoding.PEM, form, s.NoEncryption()).decode()
        found[name] = {
            "pkcs8": private(s.PrivateFormat.PKCS8),
            "sec1": private(s.PrivateFormat.TraditionalOpenSSL),
            "openssh": private(s.PrivateFormat.OpenSSH),
            "public": public_key_to_bytes(key.public_key()).decode(),
            "line": key.public_key().public_bytes(s.Encoding.OpenSSH, s.PublicFormat.OpenSSH).decode(),
        }
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in (("objects", objects), ("requests", requests), ("keys", keys)):
        (folder / f"{name}.json").write_text(json.dumps(make(), indent=1) + "\n")


if __name__ == "__main__":
    main()
