//! What the admin socket serves from the first moment on: a daemon without a cluster, and later the member that it becomes.
//! Clients keep their connections.

use std::sync::{Arc, OnceLock};

use bftd_client::{
    forming::FormRequest,
    protocol::{Failure, Request, Response},
};

use super::Forming;
use crate::{
    admin::{ADMIN_GROUP, PeerCredentials, Service},
    doctor::{self, Surroundings},
    service::NodeService,
};

/// See the module.
#[derive(Default)]
pub struct Front {
    forming: OnceLock<Arc<Forming>>,
    member: OnceLock<(NodeService, Surroundings)>,
}

impl Front {
    /// There is no cluster yet.
    pub fn form(&self, forming: Arc<Forming>) {
        let _ = self.forming.set(forming);
    }

    /// From now on it is a member.
    pub fn serve_member(&self, service: NodeService, around: Surroundings) {
        let _ = self.member.set((service, around));
    }
}

impl Service for Front {
    async fn handle(&self, peer: PeerCredentials, request: Request) -> Response {
        if let Request::Form(form) = &request
            && *form != FormRequest::Progress
            && !peer.is_admin().await
        {
            return Response::Failed(Failure::Denied(format!(
                "clusters are formed by root, by the daemon's own user, and by members of the group {ADMIN_GROUP}"
            )));
        }
        match (self.member.get(), self.forming.get()) {
            (Some((member, around)), _) if request == Request::Examine => {
                Response::Examined(doctor::examine_member(around, &member.members, &member.peers).await)
            }
            (Some((member, _)), _) => member.handle(peer, request).await,
            (None, Some(forming)) => forming.handle(request).await,
            (None, None) => Response::Failed(Failure::Stopping),
        }
    }
}
