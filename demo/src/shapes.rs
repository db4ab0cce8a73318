//! Shapes as signed distance functions: negative inside, in the units of their coordinates.
//!
//! A shape is a function of a point, so that shapes combine by combining functions. Distances
//! are exact or first-order approximations (Quilez, "2D distance functions"); the canvas needs
//! them exact only near the outline.

use std::ops::{Add, Mul, Sub};

/// A point or a vector; x runs right, y runs down.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    pub x: f32,
    pub y: f32,
}

/// The point (`x`, `y`).
pub const fn at(x: f32, y: f32) -> Point {
    Point { x, y }
}

impl Point {
    pub fn dot(self, other: Self) -> f32 {
        self.x * other.x + self.y * other.y
    }

    pub fn length(self) -> f32 {
        self.dot(self).sqrt()
    }

    /// The point turned about the origin, clockwise on the screen for a positive angle in radians.
    pub fn turned(self, angle: f32) -> Self {
        let (sin, cos) = angle.sin_cos();
        at(cos * self.x - sin * self.y, sin * self.x + cos * self.y)
    }
}

impl Add for Point {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        at(self.x + other.x, self.y + other.y)
    }
}

impl Sub for Point {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        at(self.x - other.x, self.y - other.y)
    }
}

impl Mul<f32> for Point {
    type Output = Self;
    fn mul(self, factor: f32) -> Self {
        at(self.x * factor, self.y * factor)
    }
}

/// A signed distance function.
pub trait Shape: Fn(Point) -> f32 + Copy {}
impl<F: Fn(Point) -> f32 + Copy> Shape for F {}

/// A disc.
pub fn disc(centre: Point, radius: f32) -> impl Shape {
    move |p| (p - centre).length() - radius
}

/// An ellipse with half axes `radii.x` and `radii.y`, turned by `angle`.
pub fn ellipse(centre: Point, radii: Point, angle: f32) -> impl Shape {
    let (sin, cos) = angle.sin_cos();
    move |p| {
        let q = p - centre;
        let q = at(cos * q.x + sin * q.y, cos * q.y - sin * q.x);
        let scaled = at(q.x / radii.x, q.y / radii.y);
        let gradient = at(scaled.x / radii.x, scaled.y / radii.y).length();
        let level = scaled.length();
        if gradient < 1e-6 { -radii.x.min(radii.y) } else { level * (level - 1.0) / gradient }
    }
}

/// The thick line from `a` to `b` with round ends.
pub fn capsule(a: Point, b: Point, radius: f32) -> impl Shape {
    move |p| segment_distance(p, a, b) - radius
}

/// A thick quadratic Bezier curve from `a` to `b`, pulled towards `control`.
pub fn curve(a: Point, control: Point, b: Point, radius: f32) -> impl Shape {
    const PIECES: usize = 8;
    let mut points = [a; PIECES + 1];
    for (i, point) in points.iter_mut().enumerate() {
        let t = i as f32 / PIECES as f32;
        *point = a * ((1.0 - t) * (1.0 - t)) + control * (2.0 * t * (1.0 - t)) + b * (t * t);
    }
    move |p| {
        let pieces = points.windows(2).map(|ends| segment_distance(p, ends[0], ends[1]));
        pieces.fold(f32::INFINITY, f32::min) - radius
    }
}

/// The triangle `corners`, grown by `radius` so that its corners are round.
pub fn triangle(corners: [Point; 3], radius: f32) -> impl Shape {
    move |p| {
        let [a, b, c] = corners;
        let edges = [(a, b), (b, c), (c, a)];
        let distance = edges
            .map(|(from, to)| segment_distance(p, from, to))
            .into_iter()
            .fold(f32::MAX, f32::min);
        let sides = edges.map(|(from, to)| {
            let (edge, q) = (to - from, p - from);
            edge.x * q.y - edge.y * q.x
        });
        let inside = sides.iter().all(|&side| side >= 0.0) || sides.iter().all(|&side| side <= 0.0);
        if inside { -distance - radius } else { distance - radius }
    }
}

/// A disc of `radius` whose rim swells and shrinks `count` times by `depth`.
pub fn scalloped(centre: Point, radius: f32, count: u32, depth: f32) -> impl Shape {
    move |p| {
        let q = p - centre;
        let wave = (q.y.atan2(q.x) * count as f32).cos();
        q.length() - radius - depth * wave
    }
}

/// `shape` and its mirror image in the y axis. `shape` must lie at x > 0 or be symmetric.
pub fn mirrored(shape: impl Shape) -> impl Shape {
    move |p: Point| shape(at(p.x.abs(), p.y))
}

/// What lies in `a` or in `b`, with the notches between them filled to about `blend`.
pub fn merged(a: impl Shape, b: impl Shape, blend: f32) -> impl Shape {
    move |p| {
        let (da, db) = (a(p), b(p));
        let overlap = (blend - (da - db).abs()).max(0.0) / blend;
        da.min(db) - overlap * overlap * blend * 0.25
    }
}

/// What lies in `a` and in `b`.
pub fn both(a: impl Shape, b: impl Shape) -> impl Shape {
    move |p| a(p).max(b(p))
}

/// What lies in `a` and not in `b`.
pub fn without(a: impl Shape, b: impl Shape) -> impl Shape {
    move |p| a(p).max(-b(p))
}

/// The half plane below `y`.
pub fn below(y: f32) -> impl Shape {
    move |p: Point| y - p.y
}

/// `shape` moved by `offset`.
pub fn moved(shape: impl Shape, offset: Point) -> impl Shape {
    move |p| shape(p - offset)
}

fn segment_distance(p: Point, a: Point, b: Point) -> f32 {
    let (q, edge) = (p - a, b - a);
    let along = (q.dot(edge) / edge.dot(edge).max(1e-12)).clamp(0.0, 1.0);
    (q - edge * along).length()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_negative_inside_and_right_on_the_axes() {
        let close = |value: f32, expected: f32| assert!((value - expected).abs() < 1e-5, "{value}");
        close(disc(at(1.0, 0.0), 0.5)(at(1.0, 2.0)), 1.5);
        let lying = ellipse(at(0.0, 0.0), at(2.0, 1.0), 0.0);
        close(lying(at(2.0, 0.0)), 0.0);
        close(lying(at(0.0, 1.0)), 0.0);
        assert!(lying(at(0.0, 0.0)) < 0.0 && lying(at(0.0, 1.5)) > 0.0);
        let standing = ellipse(at(0.0, 0.0), at(2.0, 1.0), std::f32::consts::FRAC_PI_2);
        close(standing(at(0.0, 2.0)), 0.0);
        close(capsule(at(-1.0, 0.0), at(1.0, 0.0), 0.25)(at(0.3, 1.0)), 0.75);
        let corner = triangle([at(0.0, 0.0), at(4.0, 0.0), at(0.0, 4.0)], 0.0);
        close(corner(at(1.0, 0.5)), -0.5);
        close(corner(at(-3.0, 1.0)), 3.0);
        close(curve(at(-1.0, 0.0), at(0.0, 2.0), at(1.0, 0.0), 0.1)(at(0.0, 1.0)), -0.1);
    }

    #[test]
    fn combinations_follow_set_algebra() {
        let (a, b) = (disc(at(0.0, 0.0), 1.0), disc(at(1.0, 0.0), 1.0));
        for step in 0..400 {
            let p = at((step % 20) as f32 * 0.2 - 2.0, (step / 20) as f32 * 0.2 - 2.0);
            let (in_a, in_b) = (a(p) < 0.0, b(p) < 0.0);
            assert_eq!(both(a, b)(p) < 0.0, in_a && in_b);
            assert!(merged(a, b, 0.1)(p) < 0.0 || !(in_a || in_b));
            assert_eq!(mirrored(b)(p), mirrored(b)(at(-p.x, p.y)));
        }
        assert!(without(a, b)(at(-0.5, 0.0)) < 0.0 && without(a, b)(at(0.5, 0.0)) > 0.0);
    }
}
