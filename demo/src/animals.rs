//! The animals. Each is drawn around the origin, about 0.75 to either side; y runs down.

use super::canvas::{Canvas, Paint};
use super::colour::{Colour, INK, WHITE, hex};
use super::features::{bead_eyes, cheeks, iris_eyes, mouth, muzzle_mouth, nose, white_eyes};
use super::looks::Look;
use super::shapes::{
    at, below, both, capsule, curve, disc, ellipse, merged, mirrored, moved, scalloped, triangle,
    without,
};

/// A class of the demo's image set.
pub struct Animal {
    pub name: &'static str,
    /// The class' typical colours.
    pub furs: &'static [Colour],
    /// Draws the head.
    pub draw: fn(&mut Canvas, &Look),
}

/// The classes in name order, which is the order of class folders.
pub const ANIMALS: [Animal; 8] = [
    Animal { name: "cat", furs: &[hex(0x8f9cb5), hex(0x75829f), hex(0xaab2c6)], draw: cat },
    Animal { name: "fox", furs: &[hex(0xf0782c), hex(0xe5642a), hex(0xf58b3c)], draw: fox },
    Animal { name: "frog", furs: &[hex(0x6cbf3f), hex(0x4fae56), hex(0x8ccc45)], draw: frog },
    Animal { name: "lion", furs: &[hex(0xf7c453), hex(0xf2b441), hex(0xfad06d)], draw: lion },
    Animal { name: "owl", furs: &[hex(0x8a5a9e), hex(0x74529c), hex(0x9a6488)], draw: owl },
    Animal { name: "panda", furs: &[hex(0xfdfcf8), hex(0xf4f3f6), hex(0xfaf3e8)], draw: panda },
    Animal { name: "pig", furs: &[hex(0xf9a3b4), hex(0xf590a8), hex(0xfbb5bb)], draw: pig },
    Animal { name: "rabbit", furs: &[hex(0xfff5ea), hex(0xe3b488), hex(0xd39c6c)], draw: rabbit },
];

const PINK: Colour = hex(0xf59aa8);

fn cat(canvas: &mut Canvas, look: &Look) {
    let fur = Paint::lit(look.fur);
    let lift = at(look.ears * 0.03, -look.ears * 0.04);
    let ear = triangle([at(0.16, -0.3), at(0.6, 0.0), at(0.58, -0.68) + lift], 0.07);
    let inner = triangle([at(0.31, -0.32), at(0.54, -0.16), at(0.54, -0.54) + lift], 0.03);
    canvas.fill(fur, mirrored(ear));
    canvas.fill(PINK, mirrored(inner));
    canvas.fill(fur, ellipse(at(0.0, 0.16), at(0.72, 0.58), 0.0));
    let stripe = look.fur.darker(0.4);
    canvas.fill(stripe, capsule(at(0.0, -0.4), at(0.0, -0.2), 0.05));
    canvas.fill(stripe, mirrored(capsule(at(0.18, -0.36), at(0.14, -0.22), 0.045)));
    canvas.fill(stripe, mirrored(capsule(at(0.56, 0.28), at(0.68, 0.25), 0.035)));
    canvas.fill(stripe, mirrored(capsule(at(0.54, 0.42), at(0.63, 0.44), 0.035)));
    canvas.fill(WHITE, mirrored(ellipse(at(0.13, 0.43), at(0.2, 0.16), 0.0)));
    cheeks(canvas, look, at(0.48, 0.32), 0.13);
    iris_eyes(canvas, look, at(0.31, 0.07), at(0.15, 0.17), hex(0xb5d94c));
    muzzle_mouth(canvas, look, at(0.0, 0.44), 0.15);
    nose(canvas, hex(0xe8788c), at(0.0, 0.33), 0.06);
}

fn fox(canvas: &mut Canvas, look: &Look) {
    let fur = Paint::lit(look.fur);
    let tip = at(0.58 + look.ears * 0.04, -0.72);
    let ear = triangle([at(0.14, -0.26), at(0.6, 0.0), tip], 0.07);
    canvas.fill(fur, mirrored(ear));
    canvas.fill(
        INK,
        mirrored(triangle([at(0.32, -0.3), at(0.54, -0.16), tip + at(-0.04, 0.16)], 0.03)),
    );
    let chin = triangle([at(-0.66, 0.14), at(0.66, 0.14), at(0.0, 0.66)], 0.12);
    let head = merged(chin, ellipse(at(0.0, 0.02), at(0.58, 0.42), 0.0), 0.2);
    canvas.fill(fur, head);
    let bib = mirrored(ellipse(at(0.5, 0.62), at(0.58, 0.36), -0.3));
    canvas.fill(WHITE, both(head, bib));
    cheeks(canvas, look, at(0.46, 0.32), 0.13);
    bead_eyes(canvas, look, at(0.29, 0.1), at(0.1, 0.125));
    mouth(canvas, look, at(0.0, 0.58), 0.13);
    canvas.fill(INK, ellipse(at(0.0, 0.48), at(0.13, 0.095), 0.0));
    canvas.fill(Paint::flat(WHITE).veil(0.7, 0.0), ellipse(at(0.03, 0.45), at(0.04, 0.022), 0.0));
}

fn frog(canvas: &mut Canvas, look: &Look) {
    let skin = Paint::lit(look.fur);
    let eyes = at(0.42, -0.34 - look.ears * 0.03);
    let bumps = mirrored(disc(eyes, 0.29));
    let head = merged(ellipse(at(0.0, 0.2), at(0.8, 0.52), 0.0), bumps, 0.12);
    canvas.fill(skin, head);
    let jaw = both(head, ellipse(at(0.0, 0.66), at(0.72, 0.42), 0.0));
    canvas.fill(look.fur.lighter(0.55), jaw);
    white_eyes(canvas, look, eyes, 0.19, [look.fur, INK]);
    canvas.fill(look.fur.darker(0.45), mirrored(disc(at(0.07, 0.05), 0.028)));
    mouth(canvas, look, at(0.0, 0.26), 0.36);
}

fn lion(canvas: &mut Canvas, look: &Look) {
    let mane = hex(0xb8531a).mix(look.fur, 0.12);
    canvas.fill(Paint::lit(mane), scalloped(at(0.0, 0.04), 0.83, 12, 0.055));
    let ears = at(0.46 + look.ears * 0.02, -0.38);
    canvas.fill(look.fur, mirrored(disc(ears, 0.17)));
    canvas.fill(mane.lighter(0.15), mirrored(disc(ears + at(0.01, 0.01), 0.09)));
    canvas.fill(Paint::lit(look.fur), ellipse(at(0.0, 0.12), at(0.58, 0.54), 0.0));
    canvas.fill(look.fur.lighter(0.65), mirrored(ellipse(at(0.12, 0.4), at(0.19, 0.16), 0.0)));
    cheeks(canvas, look, at(0.4, 0.27), 0.12);
    bead_eyes(canvas, look, at(0.24, 0.04), at(0.085, 0.11));
    muzzle_mouth(canvas, look, at(0.0, 0.4), 0.15);
    nose(canvas, hex(0x6b3420), at(0.0, 0.25), 0.1);
}

fn owl(canvas: &mut Canvas, look: &Look) {
    let feathers = Paint::lit(look.fur);
    let tip = at(0.64, -0.68 - look.ears * 0.06);
    canvas.fill(feathers, mirrored(triangle([at(0.2, -0.42), at(0.62, -0.1), tip], 0.06)));
    let head = merged(
        ellipse(at(0.0, -0.02), at(0.7, 0.55), 0.0),
        ellipse(at(0.0, 0.3), at(0.66, 0.55), 0.0),
        0.15,
    );
    canvas.fill(feathers, head);
    let belly = both(head, ellipse(at(0.0, 0.72), at(0.44, 0.32), 0.0));
    canvas.fill(look.fur.lighter(0.55), belly);
    let chevron = curve(at(0.05, 0.58), at(0.13, 0.68), at(0.21, 0.58), 0.028);
    canvas.fill(look.fur.lighter(0.1), mirrored(chevron));
    canvas.fill(look.fur.lighter(0.1), moved(mirrored(chevron), at(0.0, 0.14)));
    canvas.fill(look.fur.lighter(0.4), mirrored(disc(at(0.31, 0.0), 0.36)));
    let lash = look.fur.darker(0.6);
    white_eyes(canvas, look, at(0.31, 0.0), 0.2, [hex(0xffb52e), lash]);
    canvas.fill(hex(0xf58a1f), triangle([at(-0.09, 0.2), at(0.09, 0.2), at(0.0, 0.38)], 0.05));
}

fn panda(canvas: &mut Canvas, look: &Look) {
    let black = Paint::lit(hex(0x2f2b38));
    canvas.fill(black, mirrored(disc(at(0.54, -0.42 - look.ears * 0.03), 0.25)));
    let head = ellipse(at(0.0, 0.12), at(0.76, 0.64), 0.0);
    canvas.fill(Paint::gradient(look.fur, look.fur.darker(0.09)), head);
    canvas.fill(black, mirrored(ellipse(at(0.32, 0.1), at(0.19, 0.25), 0.55)));
    cheeks(canvas, look, at(0.5, 0.4), 0.13);
    white_eyes(canvas, look, at(0.29, 0.07), 0.105, [INK, WHITE]);
    mouth(canvas, look, at(0.0, 0.46), 0.14);
    canvas.fill(INK, ellipse(at(0.0, 0.34), at(0.11, 0.075), 0.0));
    canvas.fill(Paint::flat(WHITE).veil(0.6, 0.0), ellipse(at(0.03, 0.32), at(0.035, 0.018), 0.0));
}

fn pig(canvas: &mut Canvas, look: &Look) {
    let skin = Paint::lit(look.fur);
    let dark = look.fur.mix(hex(0xd4506f), 0.45);
    canvas.fill(skin, ellipse(at(0.0, 0.12), at(0.72, 0.64), 0.0));
    let tip = at(0.64 + look.ears * 0.04, -0.2 - look.ears * 0.08);
    let ear = triangle([at(0.22, -0.4), at(0.52, -0.5), tip], 0.09);
    canvas.fill(Paint::lit(dark), mirrored(ear));
    cheeks(canvas, look, at(0.5, 0.3), 0.14);
    bead_eyes(canvas, look, at(0.34, 0.0), at(0.085, 0.1));
    mouth(canvas, look, at(0.0, 0.52), 0.17);
    canvas.fill(Paint::lit(dark), ellipse(at(0.0, 0.28), at(0.29, 0.21), 0.0));
    canvas.fill(hex(0x8f2f4a), mirrored(ellipse(at(0.1, 0.28), at(0.045, 0.075), 0.0)));
}

fn rabbit(canvas: &mut Canvas, look: &Look) {
    let fur = Paint::lit(look.fur);
    let spread = 0.2 - look.ears * 0.1;
    let centre = at(0.2 + spread * 0.25, -0.46);
    canvas.fill(fur, mirrored(ellipse(centre, at(0.16, 0.47), spread)));
    canvas.fill(PINK, mirrored(ellipse(centre, at(0.08, 0.35), spread)));
    let head = merged(
        ellipse(at(0.0, 0.24), at(0.52, 0.46), 0.0),
        mirrored(ellipse(at(0.24, 0.42), at(0.36, 0.32), 0.0)),
        0.1,
    );
    canvas.fill(fur, head);
    canvas.fill(look.fur.lighter(0.75), mirrored(ellipse(at(0.12, 0.48), at(0.17, 0.14), 0.0)));
    cheeks(canvas, look, at(0.4, 0.42), 0.13);
    bead_eyes(canvas, look, at(0.25, 0.18), at(0.1, 0.13));
    let teeth = both(ellipse(at(0.0, 0.56), at(0.085, 0.15), 0.0), below(0.5));
    canvas.fill(WHITE, without(teeth, capsule(at(0.0, 0.5), at(0.0, 0.8), 0.01)));
    muzzle_mouth(canvas, look, at(0.0, 0.47), 0.14);
    nose(canvas, hex(0xe2607a), at(0.0, 0.37), 0.06);
}
