//! The guest's way to talk to the host: one line of JSON after the other.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::termios::{BaudRate, SetArg, cfmakeraw, cfsetspeed, tcdrain, tcgetattr, tcsetattr};

use crate::plan::{GuestPort, Message, PORT_NAME};

/// How long a virtio port may take to appear: the kernel adds it in the background.
const PORT_LIMIT: Duration = Duration::from_secs(20);

/// The open port.
pub(crate) enum Port {
    Virtio(File),
    Serial(File),
}

impl Port {
    /// Opens the port that this machine has.
    ///
    /// # Errors
    /// If the kernel has no driver for it.
    pub(crate) fn open(kind: GuestPort) -> io::Result<Self> {
        match kind {
            GuestPort::Virtio => open_virtio().map(Self::Virtio),
            GuestPort::SecondSerial => open_serial("/dev/ttyS1").map(Self::Serial),
        }
    }

    /// Sends a message. Once this returns it has left the machine, and nothing that happens to the kernel
    /// takes it back.
    ///
    /// # Errors
    /// Of `write(2)`.
    pub(crate) fn send(&mut self, message: &Message) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        match self {
            Self::Virtio(port) => port.write_all(&line),
            Self::Serial(port) => {
                port.write_all(&line)?;
                Ok(tcdrain(port)?)
            }
        }
    }

    /// A second handle of the same port, for who waits for lines while others send.
    ///
    /// # Errors
    /// Of `dup(2)`.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Virtio(port) => port.try_clone().map(Self::Virtio),
            Self::Serial(port) => port.try_clone().map(Self::Serial),
        }
    }

    /// The next line from the host.
    ///
    /// # Errors
    /// Of `read(2)`, and if this port only leads to the host.
    pub(crate) fn receive(&mut self) -> io::Result<String> {
        match self {
            Self::Virtio(_) => Err(io::Error::other("nothing comes from the host over a virtio port")),
            Self::Serial(port) => {
                let mut line = String::new();
                BufReader::new(port).read_line(&mut line)?;
                Ok(line)
            }
        }
    }
}

fn open_serial(path: &str) -> io::Result<File> {
    let no_port = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot use {path}: {error}: the kernel needs SERIAL_8250 built in"))
    };
    let port = OpenOptions::new().write(true).read(true).custom_flags(libc::O_NOCTTY).open(path).map_err(no_port)?;
    let mut settings = tcgetattr(&port).map_err(|errno| no_port(errno.into()))?;
    cfmakeraw(&mut settings);
    cfsetspeed(&mut settings, BaudRate::B115200)?;
    tcsetattr(&port, SetArg::TCSANOW, &settings)?;
    Ok(port)
}

fn open_virtio() -> io::Result<File> {
    let deadline = Instant::now() + PORT_LIMIT;
    loop {
        if let Some(path) = find_virtio() {
            return OpenOptions::new().write(true).open(path);
        }
        if Instant::now() > deadline {
            return Err(io::Error::other(format!(
                "no virtio-serial port is named {PORT_NAME}: the kernel needs VIRTIO_PCI and VIRTIO_CONSOLE, built in or as modules"
            )));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn find_virtio() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?.flatten();
    let ours = ports
        .map(|port| port.path())
        .find(|port| fs::read_to_string(port.join("name")).is_ok_and(|name| name.trim_end() == PORT_NAME))?;
    let device = Path::new("/dev").join(ours.file_name()?);
    device.exists().then_some(device)
}
