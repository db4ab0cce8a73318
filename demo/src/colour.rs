//! Colours as sRGB values in [0, 1]; mixing happens on the sRGB values, as in drawing programs.

/// A colour: red, green and blue in [0, 1].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Colour(pub [f32; 3]);

pub const WHITE: Colour = hex(0xffffff);
pub const INK: Colour = hex(0x2b2433);

/// The colour `0xrrggbb`.
pub const fn hex(rgb: u32) -> Colour {
    let [_, red, green, blue] = rgb.to_be_bytes();
    Colour([red as f32 / 255.0, green as f32 / 255.0, blue as f32 / 255.0])
}

impl Colour {
    /// This colour for `share` = 0, `other` for 1, and what lies between.
    pub fn mix(self, other: Self, share: f32) -> Self {
        Self(std::array::from_fn(|c| self.0[c] + (other.0[c] - self.0[c]) * share))
    }

    pub fn lighter(self, share: f32) -> Self {
        self.mix(WHITE, share)
    }

    pub fn darker(self, share: f32) -> Self {
        Self(self.0.map(|channel| channel * (1.0 - share)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixing_runs_from_one_colour_to_the_other() {
        let (a, b) = (hex(0x204060), hex(0xff8000));
        assert_eq!(a.mix(b, 0.0), a);
        assert_eq!(hex(0x000000).mix(hex(0xff0000), 0.5), Colour([0.5, 0.0, 0.0]));
        assert_eq!(a.lighter(1.0), WHITE);
        assert_eq!(a.darker(1.0), hex(0x000000));
    }
}
