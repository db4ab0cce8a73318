//! Images side by side in one PNG.

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{DynamicImage, GenericImage, RgbaImage};

/// Lays `images` out in rows of `columns`, `gap` pixels apart; the gaps are transparent, so that
/// the grid sits well on a light and on a dark page. Cells are as large as the largest image.
///
/// # Panics
/// If `columns` is 0.
pub fn grid(images: &[DynamicImage], columns: usize, gap: u32) -> DynamicImage {
    let width = images.iter().map(DynamicImage::width).max().unwrap_or(0);
    let height = images.iter().map(DynamicImage::height).max().unwrap_or(0);
    let rows = images.len().div_ceil(columns);
    let columns = columns.min(images.len());
    let along = |cells: usize, side: u32| (cells as u32 * (side + gap)).saturating_sub(gap).max(1);
    let mut sheet = RgbaImage::new(along(columns, width), along(rows, height));
    for (i, image) in images.iter().enumerate() {
        let (x, y) = ((i % columns) as u32 * (width + gap), (i / columns) as u32 * (height + gap));
        sheet.copy_from(&image.to_rgba8(), x, y).expect("every cell lies on the sheet");
    }
    sheet.into()
}

/// The PNG file of `image`; the same image gives the same bytes.
pub fn encode_png(image: &DynamicImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoder =
        PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Adaptive);
    image.write_with_encoder(encoder).expect("an image in memory always has a PNG");
    bytes
}

#[cfg(test)]
mod tests {
    use image::{GenericImageView, Rgb, RgbImage, Rgba};

    use super::*;

    fn plain(side: u32, colour: [u8; 3]) -> DynamicImage {
        RgbImage::from_pixel(side, side, Rgb(colour)).into()
    }

    #[test]
    fn a_grid_places_every_image_and_leaves_the_rest_transparent() {
        let images: Vec<_> = (0..5).map(|i| plain(4, [i * 10 + 1, 0, 0])).collect();
        let sheet = grid(&images, 3, 2);
        assert_eq!(sheet.dimensions(), (3 * 4 + 2 * 2, 2 * 4 + 2));
        for i in 0..5 {
            let (x, y) = (i % 3 * 6, i / 3 * 6);
            assert_eq!(sheet.get_pixel(x, y), Rgba([i as u8 * 10 + 1, 0, 0, 255]));
            assert_eq!(sheet.get_pixel(x + 3, y + 3), Rgba([i as u8 * 10 + 1, 0, 0, 255]));
        }
        assert_eq!(sheet.get_pixel(4, 0)[3], 0);
        assert_eq!(sheet.get_pixel(15, 9)[3], 0);
    }

    #[test]
    fn fewer_images_than_columns_and_none_at_all() {
        assert_eq!(grid(&[plain(4, [1, 2, 3])], 8, 2).dimensions(), (4, 4));
        assert_eq!(grid(&[], 8, 2).dimensions(), (1, 1));
    }

    #[test]
    fn png_holds_the_pixels() -> image::ImageResult<()> {
        let sheet = grid(&[plain(3, [9, 8, 7]), plain(5, [1, 2, 3])], 2, 1);
        assert_eq!(image::load_from_memory(&encode_png(&sheet))?.into_rgba8(), sheet.into_rgba8());
        Ok(())
    }
}
