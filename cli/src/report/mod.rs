//! A run as one HTML file: pictures, curves, tables and numbers, readable offline.
//!
//! A [`Report`] is plain data; [`render_html`](html::render_html) turns it into a page that holds
//! its styles, charts and pictures in itself and needs no script.

pub mod grid;
pub mod html;
pub mod pictures;

mod axis;
mod chart;

use image::DynamicImage;

/// A page.
pub struct Report {
    /// The page's heading.
    pub title: String,
    /// One line under it: what ran, when, with which seed.
    pub subtitle: String,
    pub sections: Vec<Section>,
}

/// A titled part of a page.
pub struct Section {
    pub title: String,
    pub blocks: Vec<Block>,
}

/// What a section is made of. Curves and bars stand side by side where there is room.
pub enum Block {
    /// A paragraph.
    Text(String),
    /// The numbers to see first, each with its name.
    Facts(Vec<Fact>),
    Figure(Figure),
    Curves(Curves),
    Bars(Bars),
    Table(Table),
}

/// A number (or a word) and its name.
pub struct Fact {
    pub name: String,
    pub value: String,
}

/// Rows of pictures; the columns of all rows are aligned, to compare what stands below each other.
pub struct Figure {
    pub caption: String,
    pub rows: Vec<PictureRow>,
    pub zoom: Zoom,
}

/// Pictures beside their common label.
pub struct PictureRow {
    pub label: String,
    pub pictures: Vec<DynamicImage>,
}

/// How pictures are brought to the size of their column.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Zoom {
    /// Interpolated.
    Smooth,
    /// Every pixel a square: for pyramid levels and latents.
    Pixels,
}

/// Series over a common axis.
pub struct Curves {
    pub caption: String,
    pub x_label: String,
    pub y_label: String,
    pub y_scale: Scale,
    /// Width of the moving mean as a share of the x axis; 0 draws the points as they are.
    pub smoothing: f64,
    pub series: Vec<Series>,
}

/// A named line. Points that are not finite (or not positive, on a logarithmic axis) leave a gap
/// and are counted in the legend.
pub struct Series {
    pub name: String,
    /// (x, y) with ascending x.
    pub points: Vec<(f64, f64)>,
}

/// How an axis maps values to places.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    Linear,
    Log,
}

/// Non-negative quantities as bars from a common zero.
pub struct Bars {
    pub caption: String,
    pub bars: Vec<Bar>,
}

/// One quantity.
pub struct Bar {
    pub label: String,
    /// The bar's length, in the unit that all bars of a chart share.
    pub value: f64,
    /// The quantity in words, with its unit.
    pub text: String,
}

/// A table whose first column names its rows. Columns of numbers are set flush right.
pub struct Table {
    pub caption: String,
    pub header: Vec<String>,
    /// Rows of at most as many cells as the header has.
    pub rows: Vec<Vec<String>>,
}
