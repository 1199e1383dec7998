//! Why a socket is closed, and how that is said.

/// Why a socket was closed, by either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Close {
    /// The client closed it.
    Client,
    /// It broke.
    Lost,
    /// Nothing came from the client for too long.
    Idle,
    /// The client does not take what it asked for; it should come back and read anew.
    Slow,
    /// A frame was too large.
    TooLarge,
    /// The client does not speak the protocol.
    Protocol,
    /// The server stops.
    Shutdown,
}

impl Close {
    /// The word that metrics and logs know it by.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Lost => "lost",
            Self::Idle => "idle",
            Self::Slow => "slow",
            Self::TooLarge => "too_large",
            Self::Protocol => "protocol",
            Self::Shutdown => "shutdown",
        }
    }

    /// The WebSocket close code.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::Client | Self::Lost => 1000,
            Self::Idle => 4000,
            Self::Slow => 1013,
            Self::TooLarge => 1009,
            Self::Protocol => 1002,
            Self::Shutdown => 1012,
        }
    }

    /// The text beside the code.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Client | Self::Lost => "",
            Self::Idle => "nothing heard for too long",
            Self::Slow => "the client does not keep up; reconnect",
            Self::TooLarge => "frame too large",
            Self::Protocol => "too many unreadable frames",
            Self::Shutdown => "the server is restarting",
        }
    }
}
