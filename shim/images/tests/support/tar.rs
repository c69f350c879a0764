//! Writes tars byte by byte, honest ones and others: nothing is checked here.

/// One tar under construction.
#[derive(Default, Clone)]
pub struct Tar {
    bytes: Vec<u8>,
    /// PAX records for the next entry.
    pax: Vec<u8>,
}

/// Fields of one header.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    pub kind: u8,
    pub name: &'a str,
    pub link: &'a str,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: u64,
    pub device: (u32, u32),
}

pub const MTIME: u64 = 1_600_000_000;

impl<'a> Head<'a> {
    pub fn new(kind: u8, name: &'a str) -> Self {
        Self { kind, name, link: "", mode: 0o644, uid: 0, gid: 0, size: 0, mtime: MTIME, device: (0, 0) }
    }
}

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    /// A PAX record for the next entry.
    pub fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        let body = [b" ", key.as_bytes(), b"=", value.as_ref(), b"\n"].concat();
        let mut length = body.len() + 1;
        while length != body.len() + length.to_string().len() {
            length = body.len() + length.to_string().len();
        }
        self.pax.extend_from_slice(length.to_string().as_bytes());
        self.pax.extend_from_slice(&body);
        self
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub fn entry(mut self, head: Head<'_>, content: &[u8]) -> Self {
        if !self.pax.is_empty() {
            let pax = std::mem::take(&mut self.pax);
            let size = pax.len() as u64;
            self = self.block(Head { size, ..Head::new(b'x', "pax") }, &pax);
        }
        self.block(head, content)
    }

    fn block(mut self, head: Head<'_>, content: &[u8]) -> Self {
        let mut header = [0u8; 512];
        let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
        put(0, head.name.as_bytes());
        put(100, format!("{:07o}", head.mode).as_bytes());
        put(108, format!("{:07o}", head.uid).as_bytes());
        put(116, format!("{:07o}", head.gid).as_bytes());
        put(124, format!("{:011o}", head.size).as_bytes());
        put(136, format!("{:011o}", head.mtime).as_bytes());
        put(148, b"        ");
        put(156, &[head.kind]);
        put(157, head.link.as_bytes());
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}", head.device.0).as_bytes());
        put(337, format!("{:07o}", head.device.1).as_bytes());
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub fn dir(self, name: &str, mode: u32, owner: u32) -> Self {
        self.entry(Head { mode, uid: owner, gid: owner, ..Head::new(b'5', name) }, &[])
    }

    pub fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        self.file_as(name, content, 0o644, 0)
    }

    pub fn file_as(self, name: &str, content: impl AsRef<[u8]>, mode: u32, owner: u32) -> Self {
        let content = content.as_ref();
        let size = content.len() as u64;
        self.entry(Head { mode, uid: owner, gid: owner, size, ..Head::new(b'0', name) }, content)
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(Head { link: target, mode: 0o777, ..Head::new(b'2', name) }, &[])
    }

    pub fn link(self, name: &str, target: &str) -> Self {
        self.entry(Head { link: target, ..Head::new(b'1', name) }, &[])
    }

    pub fn device(self, kind: u8, name: &str, device: (u32, u32)) -> Self {
        self.entry(Head { device, mode: 0o666, ..Head::new(kind, name) }, &[])
    }

    pub fn end(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }

    /// Without an end marker, cut where it is.
    pub fn cut(self) -> Vec<u8> {
        self.bytes
    }
}
