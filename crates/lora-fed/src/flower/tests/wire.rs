//! Requests as flwr encodes them, answers as it sends them, keys as its tools write them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use p256::pkcs8::DecodePublicKey;
use p384::ecdsa::signature::hazmat::PrehashVerifier;
use prost::Message as Proto;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::super::auth::NodeKey;
use super::super::fab::run_config;
use super::super::http::Client;
use super::super::messages::*;
use super::super::values::Value;
use super::{NODE, RUN, bytes, metadata};

const US: Option<Node> = Some(Node { node_id: NODE });

fn golden() -> BTreeMap<String, String> {
    serde_json::from_str(include_str!("../../../tests/data/flower/requests.json")).unwrap()
}

fn message() -> Message {
    let metadata = Metadata { message_id: "aa".repeat(32), ..metadata() };
    Message { metadata: Some(metadata), content: Some(Empty {}), error: None }
}

fn tree() -> ObjectTree {
    let leaf = ObjectTree { object_id: "bb".repeat(32), children: vec![] };
    ObjectTree { object_id: "aa".repeat(32), children: vec![leaf] }
}

#[test]
fn requests_are_flowers() {
    let golden = golden();
    let (messages_list, message_object_trees) = (vec![message()], vec![tree()]);
    let same = |name: &str, ours: Vec<u8>| assert_eq!(ours, bytes(&golden[name]), "{name}");
    same("register", RegisterNodeRequest { public_key: b"PEM".into() }.encode_to_vec());
    let activate = ActivateNodeRequest { public_key: b"PEM".into(), heartbeat_interval: 30.0 };
    same("activate", activate.encode_to_vec());
    same("deactivate", NodeId { node_id: NODE }.encode_to_vec());
    same("unregister", NodeId { node_id: NODE }.encode_to_vec());
    same("heartbeat", SendNodeHeartbeatRequest { node: US, heartbeat_interval: 30.0 }.encode_to_vec());
    same("pull", PullMessagesRequest { node: US }.encode_to_vec());
    let push = PushMessagesRequest {
        node: US,
        messages_list: messages_list.clone(),
        message_object_trees: message_object_trees.clone(),
        clientapp_runtime_list: vec![1.5],
    };
    same("push", push.encode_to_vec());
    let object = PushObjectRequest {
        node: US,
        run_id: RUN,
        object_id: "bb".repeat(32),
        object_content: vec![0, 1],
        session_id: "s".into(),
    };
    same("push-object", object.encode_to_vec());
    let object = PullObjectRequest { node: US, run_id: RUN, object_id: "bb".repeat(32) };
    same("pull-object", object.encode_to_vec());
    let confirm = ConfirmMessageReceivedRequest { node: US, run_id: RUN, message_object_id: "aa".repeat(32) };
    same("confirm", confirm.encode_to_vec());
    let acquire = AcquireTaskRequest { supported_task_types: vec!["flwr-serverapp".into()] };
    same("acquire", acquire.encode_to_vec());
    same("app-push", PushAppMessagesRequest { messages_list, message_object_trees }.encode_to_vec());
    same("app-pull", PullAppMessagesRequest { message_ids: vec!["aa".repeat(32)] }.encode_to_vec());
    let output = PushTaskOutputRequest { sub_status: "completed".into(), details: "done".into() };
    same("output", output.encode_to_vec());
}

#[test]
fn answers_are_understood() {
    fn read<T: Proto + Default>(name: &str) -> T {
        T::decode(bytes(&golden()[name]).as_slice()).unwrap()
    }
    assert_eq!(read::<NodeId>("activated").node_id, NODE);
    assert!(read::<HeartbeatResponse>("heartbeat-answer").success);
    let pulled: PullMessagesResponse = read("pulled");
    assert_eq!((pulled.messages_list, pulled.message_object_trees), (vec![message()], vec![tree()]));
    let pushed: PushMessagesResponse = read("pushed");
    assert_eq!((pushed.objects_to_push, pushed.session_id), (vec!["bb".repeat(32)], "s".into()));
    assert!(read::<PushObjectResponse>("push-object-answer").stored);
    let object: PullObjectResponse = read("pull-object-answer");
    assert!(object.object_found && object.object_available && object.object_content == [0, 1]);
    let acquired: AcquireTaskResponse = read("acquired");
    let task = Task { task_id: 7, kind: "flwr-serverapp".into(), run_id: RUN };
    assert_eq!((acquired.task, acquired.token), (Some(task), "t".into()));
    let nodes = read::<GetNodesResponse>("nodes").nodes;
    assert_eq!(nodes, [NodeInfo { node_id: NODE, public_key: b"PEM".into() }]);
    let pushed: PushAppMessagesResponse = read("app-pushed");
    assert_eq!((pushed.message_ids, pushed.session_id), (vec!["aa".repeat(32)], "s".into()));
    let pulled: PullAppMessagesResponse = read("app-pulled");
    assert_eq!((pulled.messages_list, pulled.message_object_trees), (vec![message()], vec![tree()]));
    let input: PullTaskInputResponse = read("input");
    assert_eq!(input.task_id, 7);
    assert_eq!(input.fab.unwrap().content, b"zip");
    let overrides = input.run.unwrap().override_config;
    assert_eq!(overrides["a.b"].scalar, Some(OneScalar::Sint64(-4)));
    assert_eq!(overrides["f"].scalar, Some(OneScalar::Uint64(u64::MAX)));
}

#[test]
fn a_runs_settings_are_the_apps_and_then_those_of_the_run() {
    let project =
        "[project]\nname = \"x\"\n[tool.flwr.app.config]\nrounds = 3\nrule = \"fedit\"\nlr.up = 0.5\n";
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file("pyproject.toml", zip::write::SimpleFileOptions::default()).unwrap();
    std::io::Write::write_all(&mut zip, project.as_bytes()).unwrap();
    let content = zip.finish().unwrap().into_inner();
    let fab = Fab { hash_str: crate::hex::hex(&Sha256::digest(&content)), content };
    let over = |key: &str| BTreeMap::from([(key.to_owned(), Scalar { scalar: Some(OneScalar::Sint64(5)) })]);
    let config = run_config(&fab, over("rounds").iter()).unwrap();
    assert_eq!(config["rounds"], Value::Int(5));
    assert_eq!(config["rule"], Value::Text("fedit".into()));
    assert_eq!(config["lr.up"], Value::Float(0.5));
    assert!(run_config(&fab, over("round").iter()).unwrap_err().to_string().contains("no setting `round`"));
    let other = Fab { hash_str: "0".repeat(64), ..fab.clone() };
    assert!(run_config(&other, over("rounds").iter()).unwrap_err().to_string().contains("hash"));
    let content = b"no zip".to_vec();
    let broken = Fab { hash_str: crate::hex::hex(&Sha256::digest(&content)), content };
    assert!(run_config(&broken, over("rounds").iter()).is_err());
}

#[test]
fn keys_are_those_of_flowers_tools() {
    let keys: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_str(include_str!("../../../tests/data/flower/keys.json")).unwrap();
    for (curve, forms) in &keys {
        for form in ["pkcs8", "sec1", "openssh"] {
            let key = NodeKey::from_pem(&forms[form]).unwrap_or_else(|e| panic!("{curve} {form}: {e}"));
            assert_eq!(key.public_pem().unwrap(), forms["public"], "{curve} {form}");
            assert_eq!(key.openssh("bank").trim(), format!("{} bank", forms["line"]), "{curve} {form}");
            assert_eq!(*key.to_pem().unwrap(), forms["pkcs8"], "{curve} {form}");
        }
    }
}

#[test]
fn a_request_is_signed_over_its_time() {
    let keys: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_str(include_str!("../../../tests/data/flower/keys.json")).unwrap();
    for curve in ["p256", "p384"] {
        let key = NodeKey::from_pem(&keys[curve]["pkcs8"]).unwrap();
        let headers = BTreeMap::from(key.headers(OffsetDateTime::UNIX_EPOCH).unwrap());
        let public = String::from_utf8(STANDARD.decode(&headers["flwr-public-key"]).unwrap()).unwrap();
        assert_eq!(public, keys[curve]["public"]);
        assert_eq!(headers["flwr-timestamp"], "1970-01-01T00:00:00.000000+00:00");
        let digest = Sha256::digest(headers["flwr-timestamp"].as_bytes());
        let signature = STANDARD.decode(&headers["flwr-signature"]).unwrap();
        if curve == "p256" {
            let signature = p256::ecdsa::Signature::from_der(&signature).unwrap();
            let key = p256::ecdsa::VerifyingKey::from_public_key_pem(&public).unwrap();
            key.verify_prehash(&digest, &signature).unwrap();
        } else {
            let signature = p384::ecdsa::Signature::from_der(&signature).unwrap();
            let key = p384::ecdsa::VerifyingKey::from_public_key_pem(&public).unwrap();
            key.verify_prehash(&digest, &signature).unwrap();
        }
    }
}

#[test]
fn plaintext_goes_to_this_machine_only() {
    for here in ["127.0.0.1:8000", "localhost:8000", "[::1]:8000", "127.9.9.9:1"] {
        Client::new(here, None, true).unwrap();
    }
    for elsewhere in ["fed.example:8000", "10.0.0.1:8000", "[2001:db8::1]:8000", "localhost.example:8000"] {
        let e = Client::new(elsewhere, None, true).unwrap_err();
        assert!(e.to_string().contains("another machine"), "{elsewhere}: {e}");
        Client::new(elsewhere, None, false).unwrap();
    }
    for wrong in
        ["fed.example", "https://fed.example:8000", "a b:1", "fed.example:0", "u@h:1", "h/p:1", ":1", "::1:1"]
    {
        assert!(Client::new(wrong, None, false).is_err(), "{wrong}");
    }
    let roots = tempfile::NamedTempFile::new().unwrap();
    assert!(
        Client::new("localhost:1", Some(roots.path()), false)
            .unwrap_err()
            .to_string()
            .contains("no certificate")
    );
    assert!(Client::new("localhost:1", Some(roots.path()), true).is_err());
}
