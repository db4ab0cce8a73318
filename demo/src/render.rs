//! One picture from a class and a seed.

use image::RgbImage;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::animals::ANIMALS;
use super::canvas::Canvas;
use super::looks::Look;

/// The classes' names in order; a class is its index here.
pub const CLASSES: [&str; ANIMALS.len()] = {
    let mut names = [""; ANIMALS.len()];
    let mut class = 0;
    while class < names.len() {
        names[class] = ANIMALS[class].name;
        class += 1;
    }
    names
};

/// Draws picture `seed` of `class` at `size` by `size` pixels.
///
/// The same arguments give the same bytes. Another size gives the same drawing at another
/// resolution.
///
/// # Panics
/// If `class` is not an index of [`CLASSES`].
pub fn render(class: usize, seed: u64, size: u32) -> RgbImage {
    let animal = &ANIMALS[class];
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(class as u64);
    let look = Look::sample(&mut rng, animal.furs);
    let mut canvas = Canvas::new(size, look.background);
    canvas.set_frame(look.frame);
    (animal.draw)(&mut canvas, &look);
    canvas.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean absolute difference of two pictures, in steps of 1/255.
    fn difference(a: &RgbImage, b: &RgbImage) -> f64 {
        let sum: u64 = a.iter().zip(b.iter()).map(|(&a, &b)| a.abs_diff(b) as u64).sum();
        sum as f64 / a.len() as f64
    }

    #[test]
    fn class_names_are_in_folder_order() {
        assert!(CLASSES.is_sorted());
    }

    #[test]
    fn a_seed_fixes_the_picture() {
        for class in 0..CLASSES.len() {
            assert_eq!(render(class, 7, 64), render(class, 7, 64));
            assert_ne!(render(class, 7, 64), render(class, 8, 64));
        }
    }

    #[test]
    fn sizes_differ_in_resolution_only() {
        for (class, name) in CLASSES.iter().enumerate() {
            let large = render(class, 3, 128);
            let halved = image::imageops::thumbnail(&large, 64, 64);
            let apart = difference(&halved, &render(class, 3, 64));
            assert!(apart < 1.5, "{name}: {apart}");
        }
    }

    #[test]
    fn odd_sizes_are_covered_to_the_last_pixel() {
        for size in [1, 17, 33, 61] {
            let picture = render(2, 11, size);
            assert_eq!(picture.dimensions(), (size, size));
            assert!(picture.pixels().all(|pixel| pixel.0.iter().any(|&value| value > 0)));
        }
    }

    /// A picture is nearer to its own class' mean than to any other's.
    #[test]
    fn classes_differ_more_than_pictures_of_a_class() {
        const SEEDS: u64 = 24;
        let means: Vec<Vec<f64>> = (0..CLASSES.len())
            .map(|class| {
                let mut mean = vec![0.0; 32 * 32 * 3];
                for seed in 0..SEEDS {
                    let picture = render(class, seed, 32);
                    for (sum, &value) in mean.iter_mut().zip(picture.iter()) {
                        *sum += value as f64 / SEEDS as f64;
                    }
                }
                mean
            })
            .collect();
        let distance = |picture: &RgbImage, mean: &[f64]| -> f64 {
            picture.iter().zip(mean).map(|(&value, mean)| (value as f64 - mean).powi(2)).sum()
        };
        let mut right = 0;
        for class in 0..CLASSES.len() {
            for seed in 100..110 {
                let picture = render(class, seed, 32);
                let nearest = (0..CLASSES.len())
                    .min_by(|&a, &b| {
                        distance(&picture, &means[a]).total_cmp(&distance(&picture, &means[b]))
                    })
                    .expect("there are classes");
                right += usize::from(nearest == class);
                assert!(difference(&picture, &render(class, seed + 100, 32)) > 2.0);
            }
        }
        assert!(right >= 76, "{right} of 80 nearest to their class");
    }
}
