//! Large objects, in pieces: each has a time and retries of its own, and the object is there when
//! the last one is.

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, WriteMultipart};

/// What goes up at once: at 1 MiB/s an attempt's time is enough for all that go up together.
pub(super) const PIECE_BYTES: usize = 8 << 20;
/// Pieces that are on their way at the same time.
const PIECES_AT_ONCE: usize = 4;

/// Writes an object in pieces. What a failure leaves behind is no object; the store is told to
/// forget it.
pub(super) async fn in_pieces(
    objects: &dyn ObjectStore,
    location: &Path,
    mut bytes: Bytes,
) -> object_store::Result<()> {
    let upload = objects.put_multipart(location).await?;
    let mut upload = WriteMultipart::new_with_chunk_size(upload, PIECE_BYTES);
    while !bytes.is_empty() {
        if let Err(error) = upload.wait_for_capacity(PIECES_AT_ONCE).await {
            // The first failure is what is told.
            let _ = upload.abort().await;
            return Err(error);
        }
        upload.put(bytes.split_to(bytes.len().min(PIECE_BYTES)));
    }
    upload.finish().await?;
    Ok(())
}
