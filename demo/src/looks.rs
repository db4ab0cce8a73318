//! What varies from picture to picture.

use rand::{Rng, RngExt};

use super::canvas::{Frame, Paint};
use super::colour::{Colour, hex};
use super::shapes::{Point, at};

/// The backgrounds lie between neighbours in this ring, which follows the hue.
const PASTELS: [Colour; 7] = [
    hex(0xaedcf5),
    hex(0xb4e8cf),
    hex(0xd5e8a4),
    hex(0xf9e39a),
    hex(0xfbc9a8),
    hex(0xf7bfd2),
    hex(0xcdc2f4),
];

/// How the eyes are held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Eyes {
    Open,
    /// Closed in laughter.
    Happy,
    /// The one on the right of the picture closed.
    Wink,
}

/// How the mouth is held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mouth {
    Smile,
    /// Open, with the tongue showing.
    Laugh,
    /// A small round o.
    Surprise,
}

/// One picture's draw of everything that varies within a class.
pub struct Look {
    pub background: Paint,
    pub frame: Frame,
    pub fur: Colour,
    pub eyes: Eyes,
    /// Factor on the eyes' radii.
    pub eye_size: f32,
    /// Where the eyes look, within the unit disc.
    pub gaze: Point,
    pub mouth: Mouth,
    /// Factor on the mouth's size.
    pub smile: f32,
    /// Opacity of the cheeks' colour.
    pub blush: f32,
    /// How the ears are held: -1 drooping or apart, 1 raised or together.
    pub ears: f32,
}

impl Look {
    /// Draws a look with a fur between two of `furs`.
    pub fn sample(rng: &mut impl Rng, furs: &[Colour]) -> Self {
        let hue = rng.random_range(0..PASTELS.len());
        let neighbour = PASTELS[(hue + 1) % PASTELS.len()];
        let sky = PASTELS[hue].mix(neighbour, rng.random_range(0.0..1.0));
        let background = Paint::gradient(sky.lighter(0.45), sky.darker(0.06));
        let frame = Frame {
            origin: at(rng.random_range(-0.07..0.07), rng.random_range(-0.05..0.07)),
            scale: rng.random_range(0.92..1.06),
            tilt: rng.random_range(-0.16..0.16),
        };
        let fur = furs[rng.random_range(0..furs.len())];
        let other_fur = furs[rng.random_range(0..furs.len())];
        let eyes = match rng.random_range(0..20) {
            0..16 => Eyes::Open,
            16..19 => Eyes::Happy,
            _ => Eyes::Wink,
        };
        let mouth = match rng.random_range(0..10) {
            0..6 => Mouth::Smile,
            6..9 => Mouth::Laugh,
            _ => Mouth::Surprise,
        };
        Self {
            background,
            frame,
            fur: fur.mix(other_fur, rng.random_range(0.0..0.5)),
            eyes,
            eye_size: rng.random_range(0.9..1.18),
            gaze: at(rng.random_range(-0.8..0.8), rng.random_range(-0.5..0.5)),
            mouth,
            smile: rng.random_range(0.85..1.15),
            blush: rng.random_range(0.0..0.6),
            ears: rng.random_range(-1.0..1.0),
        }
    }
}
