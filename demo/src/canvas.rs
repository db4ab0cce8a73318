//! A canvas that shapes are painted on, with smooth edges.

use image::{Rgb, RgbImage};

use super::colour::Colour;
use super::shapes::{Point, Shape, at};

/// Samples along each side of a pixel.
const SUPERSAMPLE: u32 = 2;
/// Side of the square of samples that is skipped or painted as a whole.
const TILE: usize = 8;
/// How far an approximate distance may be off: tiles nearer than this many radii are painted.
const TILE_MARGIN: f32 = 2.0;

/// How a shape's inside is coloured.
#[derive(Clone, Copy)]
pub struct Paint {
    top: Colour,
    bottom: Colour,
    opacity: f32,
    /// Width of the edge in drawing units; 0 is one sample wide.
    softness: f32,
}

impl Paint {
    /// One colour.
    pub fn flat(colour: Colour) -> Self {
        Self::gradient(colour, colour)
    }

    /// From `top` at y = -1 to `bottom` at y = 1.
    pub fn gradient(top: Colour, bottom: Colour) -> Self {
        Self { top, bottom, opacity: 1.0, softness: 0.0 }
    }

    /// A colour lit from above.
    pub fn lit(colour: Colour) -> Self {
        Self::gradient(colour.lighter(0.14), colour.darker(0.1))
    }

    /// The same, with `opacity` in [0, 1] and an edge that fades over `softness`.
    pub fn veil(self, opacity: f32, softness: f32) -> Self {
        Self { opacity, softness, ..self }
    }
}

impl From<Colour> for Paint {
    fn from(colour: Colour) -> Self {
        Self::flat(colour)
    }
}

/// Where the drawing's coordinates lie on the canvas.
#[derive(Clone, Copy)]
pub struct Frame {
    /// Canvas position of the drawing's origin; the canvas spans [-1, 1] on both axes.
    pub origin: Point,
    /// Canvas units a drawing unit.
    pub scale: f32,
    /// Clockwise, in radians.
    pub tilt: f32,
}

impl Frame {
    /// The canvas' own coordinates.
    pub const CANVAS: Self = Self { origin: at(0.0, 0.0), scale: 1.0, tilt: 0.0 };
}

/// A square picture being painted.
pub struct Canvas {
    size: u32,
    /// Samples, row-major.
    samples: Vec<[f32; 3]>,
    frame: Frame,
}

impl Canvas {
    /// A canvas for a picture of `size` by `size` pixels, covered with `background`.
    pub fn new(size: u32, background: Paint) -> Self {
        let side = (size * SUPERSAMPLE) as usize;
        let mut canvas = Self { size, samples: vec![[0.0; 3]; side * side], frame: Frame::CANVAS };
        canvas.fill(background, |_| f32::MIN);
        canvas
    }

    /// Shapes painted from here on are given in the coordinates of `frame`.
    pub fn set_frame(&mut self, frame: Frame) {
        self.frame = frame;
    }

    /// Paints `shape` over what is there.
    pub fn fill(&mut self, paint: impl Into<Paint>, shape: impl Shape) {
        let paint = paint.into();
        let side = self.side();
        let reach = (TILE as f32 * 0.75 * TILE_MARGIN) * self.sample_width() + paint.softness;
        for y in (0..side).step_by(TILE) {
            for x in (0..side).step_by(TILE) {
                let half = TILE as f32 / 2.0;
                let centre = self.drawing_point(x as f32 + half, y as f32 + half);
                if shape(centre) < reach {
                    self.fill_tile(x, y, &paint, shape);
                }
            }
        }
    }

    /// The finished picture: the mean of each pixel's samples.
    pub fn finish(&self) -> RgbImage {
        let (side, step) = (self.side(), SUPERSAMPLE as usize);
        RgbImage::from_fn(self.size, self.size, |x, y| {
            let corner = y as usize * step * side + x as usize * step;
            let mut sum = [0.0; 3];
            for i in 0..step * step {
                let sample = self.samples[corner + i / step * side + i % step];
                sum = std::array::from_fn(|channel| sum[channel] + sample[channel]);
            }
            Rgb(sum.map(|value| (value / (step * step) as f32 * 255.0).round() as u8))
        })
    }

    fn fill_tile(&mut self, x0: usize, y0: usize, paint: &Paint, shape: impl Shape) {
        let side = self.side();
        let edge = self.sample_width().max(paint.softness);
        for y in y0..(y0 + TILE).min(side) {
            for x in x0..(x0 + TILE).min(side) {
                let p = self.drawing_point(x as f32 + 0.5, y as f32 + 0.5);
                let cover = (0.5 - shape(p) / edge).clamp(0.0, 1.0);
                let cover = if paint.softness > 0.0 { smooth(cover) } else { cover };
                if cover > 0.0 {
                    let Colour(colour) =
                        paint.top.mix(paint.bottom, (p.y * 0.5 + 0.5).clamp(0.0, 1.0));
                    let sample = &mut self.samples[y * side + x];
                    for (value, target) in sample.iter_mut().zip(colour) {
                        *value += (target - *value) * cover * paint.opacity;
                    }
                }
            }
        }
    }

    fn side(&self) -> usize {
        (self.size * SUPERSAMPLE) as usize
    }

    /// A sample's width in drawing units.
    fn sample_width(&self) -> f32 {
        2.0 / (self.side() as f32 * self.frame.scale)
    }

    /// The drawing coordinates of the canvas position (`x`, `y`) counted in samples.
    fn drawing_point(&self, x: f32, y: f32) -> Point {
        let half = self.side() as f32 / 2.0;
        let on_canvas = at(x / half - 1.0, y / half - 1.0);
        (on_canvas - self.frame.origin).turned(-self.frame.tilt) * (1.0 / self.frame.scale)
    }
}

fn smooth(t: f32) -> f32 {
    t * t * (3.0 - 2.0 * t)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::colour::{INK, WHITE, hex};
    use crate::shapes::{disc, ellipse, mirrored, scalloped, triangle};

    /// Painting in tiles leaves out nothing that painting every sample would paint.
    #[test]
    fn tiles_never_change_a_picture() {
        let frame = Frame { origin: at(0.1, -0.05), scale: 0.8, tilt: 0.3 };
        let paint_all = |soft: f32, paint_tiles: bool| {
            let paint = Paint::gradient(INK, hex(0xff0000)).veil(0.9, soft);
            let mut canvas = Canvas::new(60, WHITE.into());
            canvas.set_frame(frame);
            let mut put = |shape: &dyn Fn(Point) -> f32| {
                let shape = |p| shape(p);
                if paint_tiles {
                    canvas.fill(paint, shape);
                } else {
                    let side = canvas.side();
                    for (y, x) in (0..side * side).map(|i| (i / side, i % side)) {
                        if y % TILE == 0 && x % TILE == 0 {
                            canvas.fill_tile(x, y, &paint, shape);
                        }
                    }
                }
            };
            put(&ellipse(at(0.2, 0.1), at(0.6, 0.1), 0.7));
            put(&mirrored(triangle([at(0.2, -0.3), at(0.7, 0.0), at(0.9, -0.9)], 0.05)));
            put(&scalloped(at(0.0, 0.5), 0.3, 12, 0.05));
            canvas.finish()
        };
        for soft in [0.0, 0.2] {
            assert_eq!(paint_all(soft, true), paint_all(soft, false));
        }
    }

    #[test]
    fn an_edge_covers_its_share_of_the_pixels() {
        let mut canvas = Canvas::new(64, hex(0x000000).into());
        canvas.fill(WHITE, disc(at(0.0, 0.0), 0.5));
        let sum: f64 = canvas.finish().iter().map(|&value| value as f64 / 255.0).sum();
        let share = sum / (64.0 * 64.0 * 3.0);
        assert!((share - std::f64::consts::PI / 16.0).abs() < 1e-3, "{share}");
    }
}
