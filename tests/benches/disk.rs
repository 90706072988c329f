//! A disk that can be cut off, filled and freed: an ext4 file system in an image file, mounted in a mount namespace of
//! the program's own, so that nothing stays mounted however it ends. It takes root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{process::Command, time::sleep};

use crate::harness::{run, text};

/// Set in the process that has the mount namespace.
const INSIDE: &str = "--inside";

/// Whether a mount namespace can be had.
pub(crate) async fn is_allowed() -> bool {
    let allowed = Command::new("unshare").args(["--mount", "--", "true"]).stderr(Stdio::null()).status().await;
    allowed.is_ok_and(|status| status.success())
}

/// The same program once more, in a mount namespace of its own.
pub(crate) async fn again_inside() -> bool {
    let program = std::env::current_exe().expect("this program");
    let given = std::env::args_os().skip(1);
    if !is_allowed().await {
        println!("skipped: a mount namespace is not allowed here (it takes root, and `unshare`)");
        return true;
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--"]).arg(program).args(given).arg(INSIDE);
    command.status().await.expect("unshare is there").success()
}

/// An ext4 file system in an image file, mounted.
pub(crate) struct Disk {
    folder: TempDir,
}

impl Disk {
    /// Makes one of `bytes`, or says why that can't be done here.
    pub(crate) async fn make(bytes: u64) -> Result<Self, String> {
        // In memory where possible: what is flushed to it is there at once.
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let disk = Self { folder: folder.map_err(|error| error.to_string())? };
        let image = fs::File::create(disk.image()).and_then(|image| image.set_len(bytes));
        image.map_err(|error| error.to_string())?;
        run("mkfs.ext4", &["-q", "-F", "-m", "0", text(&disk.image())]).await?;
        fs::create_dir(disk.place()).map_err(|error| error.to_string())?;
        disk.mount(&disk.image()).await?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// The image as it was at the cut.
    fn cut(&self) -> PathBuf {
        self.folder.path().join("cut")
    }

    /// Takes all the room that is left.
    pub(crate) async fn fill(&self) {
        let into = format!("of={}", text(&self.ballast()));
        for size in ["bs=256k", "bs=1k"] {
            // It ends when there is no more: that is no failure here.
            let _ =
                run("dd", &["if=/dev/zero", &into, size, "oflag=append", "conv=notrunc,fsync", "status=none"]).await;
        }
    }

    /// Gives it back.
    pub(crate) fn free(&self) {
        fs::remove_file(self.ballast()).expect("it was filled");
    }

    fn ballast(&self) -> PathBuf {
        self.place().join("ballast")
    }

    fn place(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// A folder on it, made if need be.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let folder = self.place().join(name);
        fs::create_dir_all(&folder).expect("the disk is writable");
        folder
    }

    /// The journal is written seldom, so that nothing becomes durable by the way.
    async fn mount(&self, image: &Path) -> Result<(), String> {
        run("mount", &["-o", "loop,commit=300", text(image), text(&self.place())]).await
    }

    /// Makes durable what was written so far.
    pub(crate) async fn flush(&self) {
        run("sync", &["--file-system", text(&self.place())]).await.expect("it can be flushed");
    }

    /// Keeps the image as it is now, for [`Disk::put_copy_in_place`].
    pub(crate) async fn copy(&self) {
        run("cp", &["--sparse=always", text(&self.image()), text(&self.cut())]).await.expect("there is room");
    }

    /// Mounts the copy instead; nothing may have a file open.
    pub(crate) async fn put_copy_in_place(&self) {
        self.unmount().await;
        self.mount(&self.cut()).await.expect("the journal recovers the copy");
    }

    async fn unmount(&self) {
        let began = Instant::now();
        while let Err(why) = run("umount", &[text(&self.place())]).await {
            assert!(began.elapsed() < Duration::from_secs(10), "the disk stays in use: {why}");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The namespace would end it too; this frees the memory before the next.
        let place = self.place();
        let _ = std::process::Command::new("umount").arg("--lazy").arg(place).stderr(Stdio::null()).status();
    }
}
