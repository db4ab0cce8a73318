//! The parts that several animals share: eyes, mouths, cheeks.

use super::canvas::{Canvas, Paint};
use super::colour::{Colour, INK, WHITE, hex};
use super::looks::{Eyes, Look, Mouth};
use super::shapes::{Point, Shape, at, below, both, curve, disc, ellipse, mirrored, moved};

const TONGUE: Colour = hex(0xf2747f);
const MOUTH_INSIDE: Colour = hex(0x7c2b3d);
const CHEEK: Colour = hex(0xff6b81);

/// A pair of dark eyes with highlights, `centre` being the one at x > 0.
pub fn bead_eyes(canvas: &mut Canvas, look: &Look, centre: Point, radii: Point) {
    let radii = radii * look.eye_size;
    pair(canvas, look, centre, radii, INK, |canvas, eye| {
        let pupil = eye + at(look.gaze.x * radii.x, look.gaze.y * radii.y) * 0.18;
        canvas.fill(INK, ellipse(pupil, radii, 0.0));
        highlights(canvas, pupil, radii);
    });
}

/// A pair of eyes with a coloured iris, `centre` being the one at x > 0.
pub fn iris_eyes(canvas: &mut Canvas, look: &Look, centre: Point, radii: Point, iris: Colour) {
    let radii = radii * look.eye_size;
    pair(canvas, look, centre, radii, INK, |canvas, eye| {
        let gaze = at(look.gaze.x * radii.x, look.gaze.y * radii.y);
        canvas.fill(INK, ellipse(eye, radii * 1.14, 0.0));
        canvas.fill(Paint::gradient(iris.darker(0.2), iris), ellipse(eye, radii, 0.0));
        canvas.fill(INK, ellipse(eye + gaze * 0.22, at(radii.x * 0.56, radii.y * 0.72), 0.0));
        highlights(canvas, eye + gaze * 0.1, radii);
    });
}

/// A pair of white eyes with a large pupil in a ring of colour `rim`, `centre` being the one at
/// x > 0. Closed, they are drawn in `lash`.
pub fn white_eyes(
    canvas: &mut Canvas,
    look: &Look,
    centre: Point,
    radius: f32,
    [rim, lash]: [Colour; 2],
) {
    let radius = radius * look.eye_size;
    pair(canvas, look, centre, at(radius, radius), lash, |canvas, eye| {
        canvas.fill(rim, disc(eye, radius * 1.3));
        canvas.fill(WHITE, disc(eye, radius));
        let pupil = eye + look.gaze * (radius * 0.24);
        canvas.fill(INK, disc(pupil, radius * 0.68));
        highlights(canvas, pupil, at(radius, radius) * 0.68);
    });
}

/// A mouth whose upper edge is at `centre`, about `width` to either side.
pub fn mouth(canvas: &mut Canvas, look: &Look, centre: Point, width: f32) {
    let width = width * look.smile;
    match look.mouth {
        Mouth::Smile => {
            let (left, right) = (centre + at(-width, 0.0), centre + at(width, 0.0));
            canvas.fill(INK, curve(left, centre + at(0.0, width * 1.1), right, 0.026));
        }
        Mouth::Laugh => {
            let opening = open_mouth(centre, at(width * 0.85, width * 1.05));
            canvas.fill(MOUTH_INSIDE, opening);
            let tongue = disc(centre + at(0.0, width * 1.05), width * 0.6);
            canvas.fill(TONGUE, both(opening, tongue));
        }
        Mouth::Surprise => {
            let radii = at(width * 0.34, width * 0.42);
            canvas.fill(MOUTH_INSIDE, ellipse(centre + at(0.0, width * 0.5), radii, 0.0));
        }
    }
}

/// The mouth of cats and rabbits: two small curves that meet below the nose.
pub fn muzzle_mouth(canvas: &mut Canvas, look: &Look, centre: Point, width: f32) {
    let width = width * look.smile;
    if look.mouth != Mouth::Smile {
        let opening = open_mouth(centre + at(0.0, 0.02), at(width * 0.62, width * 0.95));
        canvas.fill(MOUTH_INSIDE, opening);
        let tongue = disc(centre + at(0.0, width * 0.95), width * 0.5);
        canvas.fill(TONGUE, both(opening, tongue));
    }
    let half = curve(centre, centre + at(width * 0.5, width), centre + at(width, 0.0), 0.024);
    canvas.fill(INK, mirrored(half));
}

/// Soft coloured cheeks, `centre` being the one at x > 0.
pub fn cheeks(canvas: &mut Canvas, look: &Look, centre: Point, radius: f32) {
    let spot = mirrored(disc(centre, radius * 0.8));
    canvas.fill(Paint::flat(CHEEK).veil(look.blush, radius), spot);
}

/// A small triangular nose that points down, its upper edge at `top`.
pub fn nose(canvas: &mut Canvas, colour: Colour, top: Point, width: f32) {
    let corners = [top + at(-width, 0.0), top + at(width, 0.0), top + at(0.0, width * 0.9)];
    canvas.fill(colour, super::shapes::triangle(corners, width * 0.35));
}

fn open_mouth(top: Point, radii: Point) -> impl Shape {
    both(ellipse(top, radii, 0.0), below(top.y))
}

/// Draws both eyes as the look holds them: with `open`, or as a laughing arc in `lash`.
fn pair(
    canvas: &mut Canvas,
    look: &Look,
    centre: Point,
    radii: Point,
    lash: Colour,
    open: impl Fn(&mut Canvas, Point),
) {
    for side in [-1.0, 1.0] {
        let eye = at(centre.x * side, centre.y);
        let closed = match look.eyes {
            Eyes::Open => false,
            Eyes::Happy => true,
            Eyes::Wink => side > 0.0,
        };
        if closed {
            let width = radii.x.max(radii.y) * 0.95;
            let (left, right) = (at(-width, width * 0.35), at(width, width * 0.35));
            let arc = curve(left, at(0.0, -width * 1.3), right, 0.04);
            canvas.fill(lash, moved(arc, eye));
        } else {
            open(canvas, eye);
        }
    }
}

fn highlights(canvas: &mut Canvas, pupil: Point, radii: Point) {
    let size = radii.x.min(radii.y);
    canvas.fill(WHITE, disc(pupil + at(size * 0.32, -radii.y * 0.38), size * 0.34));
    let glow = Paint::flat(WHITE).veil(0.55, 0.0);
    canvas.fill(glow, disc(pupil + at(-size * 0.34, radii.y * 0.42), size * 0.18));
}
