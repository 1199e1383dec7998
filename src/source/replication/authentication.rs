//! Proving who we are: trust, a password in clear or as MD5, and SCRAM with channel binding.

use bytes::{Buf, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, ChannelBinding, ScramSha256};
use postgres_protocol::message::frontend;
use tokio_postgres::config;

use super::{SessionError, Walsender};
use crate::source::reader::{Malformed, Reader};

impl Walsender {
    /// Proves who we are, in the way that the server asks for.
    pub(super) async fn authenticate(
        &mut self,
        config: &config::Config,
        user: &str,
    ) -> Result<(), SessionError> {
        let password = config.get_password().unwrap_or_default();
        let must_bind = config.get_channel_binding() == config::ChannelBinding::Require;
        let (kind, body) = self.authentication().await?;
        if must_bind && kind != 10 {
            return Err(SessionError::NoChannelBinding);
        }
        match kind {
            0 => return Ok(()),
            3 => frontend::password_message(password, &mut self.outgoing)?,
            5 => {
                let salt = body.first_chunk().ok_or(Malformed)?;
                let hash = md5_hash(user.as_bytes(), password, *salt);
                frontend::password_message(hash.as_bytes(), &mut self.outgoing)?;
            }
            10 => self.scram(config, password, &body).await?,
            _ => return Err(SessionError::Authentication),
        }
        self.flush().await?;
        match self.authentication().await? {
            (0, _) => Ok(()),
            _ => Err(SessionError::Authentication),
        }
    }

    /// SCRAM-SHA-256, bound to the TLS connection where both sides can. Claiming not to be able
    /// to while the server offers it is what tells the server of somebody in between.
    async fn scram(
        &mut self,
        config: &config::Config,
        password: &[u8],
        offered: &[u8],
    ) -> Result<(), SessionError> {
        let mut offered = Reader(offered);
        let (mut plain, mut plus) = (false, false);
        loop {
            match offered.text()? {
                "" => break,
                sasl::SCRAM_SHA_256 => plain = true,
                sasl::SCRAM_SHA_256_PLUS => plus = true,
                _ => {}
            }
        }
        let binding = config.get_channel_binding();
        let end_point = self
            .stream
            .end_point()
            .filter(|_| binding != config::ChannelBinding::Disable);
        let (mechanism, channel) = match end_point {
            Some(digest) if plus => (
                sasl::SCRAM_SHA_256_PLUS,
                ChannelBinding::tls_server_end_point(digest),
            ),
            _ if binding == config::ChannelBinding::Require => {
                return Err(SessionError::NoChannelBinding);
            }
            Some(_) if plain => (sasl::SCRAM_SHA_256, ChannelBinding::unrequested()),
            None if plain => (sasl::SCRAM_SHA_256, ChannelBinding::unsupported()),
            _ => return Err(SessionError::Authentication),
        };
        let mut scram = ScramSha256::new(password, channel);
        frontend::sasl_initial_response(mechanism, scram.message(), &mut self.outgoing)?;
        self.flush().await?;
        let (11, challenge) = self.authentication().await? else {
            return Err(SessionError::Authentication);
        };
        scram.update(&challenge)?;
        frontend::sasl_response(scram.message(), &mut self.outgoing)?;
        self.flush().await?;
        let (12, proof) = self.authentication().await? else {
            return Err(SessionError::Authentication);
        };
        scram.finish(&proof)?;
        Ok(())
    }

    /// The next authentication message: its kind and the rest of it.
    async fn authentication(&mut self) -> Result<(u32, BytesMut), SessionError> {
        let (tag, mut body) = self.message().await?;
        if tag != b'R' {
            return Err(Malformed.into());
        }
        let kind = Reader(&body).u32()?;
        body.advance(size_of::<u32>());
        Ok((kind, body))
    }
}
