//! Unary gRPC calls over HTTP/2 on plain TCP, and no more of it: no names, no balancing, no second try.
//!
//! A message is a byte for "not compressed", its length in four bytes, and itself; how the call went stands in the
//! trailers, or in the headers where there is no message (gRPC over HTTP/2, "Requests" and "Responses").

use std::net::SocketAddr;

use bftd_client::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Uri, header};
use prost::Message;
use tokio::{net::TcpStream, task::AbortHandle};

/// What a server may send ahead; a large window spares updates of it.
const WINDOW: u32 = 1 << 20;
/// What stands before a message.
const PREFIX: usize = 5;
/// The longest message that we take, in bytes.
const LONGEST: usize = 1 << 20;

/// A connection, which many calls may share. It closes when it is dropped.
#[derive(Debug)]
pub(super) struct Channel {
    address: SocketAddr,
    sender: SendRequest<Bytes>,
    driver: AbortHandle,
}

/// What a call begins with.
#[derive(Debug)]
pub(super) struct Method {
    uri: Uri,
    headers: HeaderMap,
}

impl Method {
    pub(super) fn new(address: SocketAddr, path: &str) -> Result<Self, String> {
        let uri = format!("http://{address}{path}").parse().map_err(|error| format!("{path}: {error}"))?;
        let mut headers = HeaderMap::new();
        headers.insert(header::TE, header::HeaderValue::from_static("trailers"));
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/grpc"));
        Ok(Self { uri, headers })
    }

    fn request(&self) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = http::Method::POST;
        *request.version_mut() = http::Version::HTTP_2;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

impl Channel {
    pub(super) async fn connect(address: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let handshake = h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(stream);
        let (sender, connection) = handshake.await.map_err(|error| error.to_string())?;
        // A connection that breaks shows in the calls.
        let driver = tokio::spawn(async { drop(connection.await) }).abort_handle();
        Ok(Self { address, sender, driver })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Asks, and waits for the answer.
    pub(super) async fn call<A: Message + Default>(
        &self,
        method: &Method,
        question: &impl Message,
    ) -> Result<A, String> {
        let answer = self.exchange(method, frame(question)).await.map_err(|error| error.to_string())??;
        A::decode(&answer[..]).map_err(|error| error.to_string())
    }

    /// The inner error is the server's.
    async fn exchange(&self, method: &Method, frame: Bytes) -> Result<Result<Vec<u8>, String>, h2::Error> {
        let mut sender = self.sender.clone().ready().await?;
        let (response, mut stream) = sender.send_request(method.request(), false)?;
        stream.send_data(frame, true)?;
        let (head, mut body) = response.await?.into_parts();
        let mut answer = Vec::new();
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            if answer.len() + data.len() > LONGEST {
                return Ok(Err("the answer is too long".to_owned()));
            }
            answer.extend_from_slice(&data);
        }
        let trailers = body.trailers().await?.unwrap_or(head.headers);
        Ok(outcome(&trailers).and_then(|()| unframe(answer)))
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = Vec::with_capacity(PREFIX + length);
    frame.push(0);
    frame.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    message.encode(&mut frame).expect("a vector grows as it must");
    frame.into()
}

/// The one message of an answer.
fn unframe(mut answer: Vec<u8>) -> Result<Vec<u8>, String> {
    match answer.first_chunk::<PREFIX>() {
        Some([0, length @ ..]) if u32::from_be_bytes(*length) as usize == answer.len() - PREFIX => {
            answer.drain(..PREFIX);
            Ok(answer)
        }
        _ => Err("the answer is not one message without compression".to_owned()),
    }
}

/// How the call went, by its trailers.
fn outcome(trailers: &HeaderMap) -> Result<(), String> {
    let text = |name| trailers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        Some("0") => Ok(()),
        Some(code) => Err(format!("gRPC status {code}: {}", text("grpc-message").unwrap_or("no message"))),
        None => Err("the answer has no gRPC status".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_one_whole_message() {
        assert_eq!(unframe(b"\x00\x00\x00\x00\x02ab".to_vec()), Ok(b"ab".to_vec()));
        assert_eq!(unframe(b"\x00\x00\x00\x00\x00".to_vec()), Ok(Vec::new()));
        for broken in [
            &b""[..],
            b"\x00\x00",
            b"\x01\x00\x00\x00\x00",
            b"\x00\x00\x00\x00\x02a",
            b"\x00\x00\x00\x00\x00a",
        ] {
            assert!(unframe(broken.to_vec()).is_err(), "{broken:?}");
        }
        assert_eq!(&frame(&"ab".to_owned())[..], b"\x00\x00\x00\x00\x04\x0a\x02ab");
    }

    #[test]
    fn a_server_says_why_it_refuses() {
        let mut trailers = HeaderMap::new();
        assert!(outcome(&trailers).is_err());
        trailers.insert("grpc-status", header::HeaderValue::from_static("8"));
        trailers.insert("grpc-message", header::HeaderValue::from_static("too many requests"));
        assert_eq!(outcome(&trailers), Err("gRPC status 8: too many requests".to_owned()));
        trailers.insert("grpc-status", header::HeaderValue::from_static("0"));
        assert_eq!(outcome(&trailers), Ok(()));
    }
}
