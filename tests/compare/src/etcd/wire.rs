//! The part of etcd's API that is measured (`rpc.proto` of etcd 3.4), by hand: no generated code, no protoc.

use std::{net::SocketAddr, time::Duration};

use bftd_client::Bytes;
use prost::Message;
use tokio::time::timeout;

use super::grpc;
use crate::cluster::{Connection, DEADLINE};

/// Within what time a connection must be made.
const CONNECTED: Duration = Duration::from_secs(5);

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
#[derive(Debug)]
pub(crate) struct Client {
    channel: grpc::Channel,
    put: grpc::Method,
    range: grpc::Method,
}

impl Client {
    pub(super) async fn connect(address: SocketAddr) -> Result<Self, String> {
        let channel = timeout(CONNECTED, grpc::Channel::connect(address));
        let channel = channel.await.unwrap_or_else(|_| Err(format!("no greeting within {CONNECTED:?}")));
        Ok(Self {
            channel: channel.map_err(|why| format!("{address}: {why}"))?,
            put: grpc::Method::new(address, "/etcdserverpb.KV/Put")?,
            range: grpc::Method::new(address, "/etcdserverpb.KV/Range")?,
        })
    }

    pub(super) async fn status(&self) -> Result<StatusResponse, String> {
        let method = grpc::Method::new(self.channel.address(), "/etcdserverpb.Maintenance/Status")?;
        self.call(&method, &StatusRequest {}).await
    }

    async fn call<A: Message + Default>(
        &self,
        method: &grpc::Method,
        question: &impl Message,
    ) -> Result<A, String> {
        let answer = timeout(DEADLINE, self.channel.call(method, question));
        answer.await.unwrap_or_else(|_| Err(format!("no answer within {DEADLINE:?}")))
    }
}

impl Connection for Client {
    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), String> {
        let _: PutResponse = self.call(&self.put, &PutRequest { key, value }).await?;
        Ok(())
    }

    async fn get(&self, key: Bytes) -> Result<Option<usize>, String> {
        let answer: RangeResponse = self.call(&self.range, &RangeRequest { key }).await?;
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
