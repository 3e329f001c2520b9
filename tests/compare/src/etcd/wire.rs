//! The part of etcd's API that is measured (`rpc.proto` of etcd 3.4), by hand: no generated code, no protoc.

use std::{net::SocketAddr, time::Duration};

use bftd_client::Bytes;
use prost::Message;
use tokio::time::timeout;
use tonic::{
    Request,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::cluster::{Connection, DEADLINE};

/// Within what time a connection must be made.
const CONNECTED: Duration = Duration::from_secs(5);
/// What a server may send ahead; a large window spares updates of it.
const WINDOW: u32 = 1 << 20;

#[derive(Clone, PartialEq, Message)]
pub(super) struct ResponseHeader {
    #[prost(uint64, tag = "2")]
    pub(super) member_id: u64,
    #[prost(int64, tag = "3")]
    pub(super) revision: i64,
}

#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct PutResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
}

/// Linearizable, as `serializable` is left out.
#[derive(Clone, PartialEq, Message)]
struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(int64, tag = "3")]
    mod_revision: i64,
    #[prost(bytes = "bytes", tag = "5")]
    value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct RangeResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) header: Option<ResponseHeader>,
    /// The leader's member id; 0 while there is none.
    #[prost(uint64, tag = "4")]
    pub(super) leader: u64,
}

/// A connection to an etcd node.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    channel: Channel,
}

impl Client {
    pub(super) async fn connect(address: SocketAddr) -> Result<Self, String> {
        let endpoint =
            Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
        let endpoint = endpoint
            .connect_timeout(CONNECTED)
            .initial_connection_window_size(WINDOW)
            .initial_stream_window_size(WINDOW);
        let channel = endpoint.connect().await.map_err(|error| format!("{address}: {error}"))?;
        Ok(Self { channel })
    }

    pub(super) async fn status(&self) -> Result<StatusResponse, String> {
        self.call("/etcdserverpb.Maintenance/Status", StatusRequest {}).await
    }

    async fn call<Q, A>(&self, path: &'static str, question: Q) -> Result<A, String>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let call = async {
            let mut grpc = Grpc::new(self.channel.clone());
            grpc.ready().await.map_err(|error| error.to_string())?;
            let path = PathAndQuery::from_static(path);
            let codec = ProstCodec::default();
            let answer = grpc.unary(Request::new(question), path, codec).await;
            answer.map(tonic::Response::into_inner).map_err(|status| status.to_string())
        };
        timeout(DEADLINE, call).await.unwrap_or_else(|_| Err(format!("no answer within {DEADLINE:?}")))
    }
}

impl Connection for Client {
    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), String> {
        let _: PutResponse = self.call("/etcdserverpb.KV/Put", PutRequest { key, value }).await?;
        Ok(())
    }

    async fn get(&self, key: Bytes) -> Result<Option<usize>, String> {
        let answer: RangeResponse = self.call("/etcdserverpb.KV/Range", RangeRequest { key }).await?;
        Ok(answer.kvs.first().map(|entry| entry.value.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_as_etcd_writes_them() {
        let put = PutRequest { key: "k".into(), value: "v".into() };
        assert_eq!(put.encode_to_vec(), b"\x0a\x01k\x12\x01v");
        // A header of member 5 at revision 7; one entry: key, create, mod, version, value.
        let bytes =
            b"\x0a\x06\x08\x01\x10\x05\x18\x07\x12\x0e\x0a\x01k\x10\x02\x18\x03\x20\x01\x2a\x03val\x20\x01";
        let answer = RangeResponse::decode(&bytes[..]).expect("well-formed");
        assert_eq!(answer.header, Some(ResponseHeader { member_id: 5, revision: 7 }));
        assert_eq!(
            answer.kvs.first().map(|entry| (&entry.value[..], entry.mod_revision)),
            Some((&b"val"[..], 3))
        );
    }
}
