//! A page of HTML from plain data: pictures, curves, tables and numbers, readable offline.
//!
//! In: a [`Report`]. Out: a page that holds its styles, charts and pictures in itself and needs no
//! script ([`render_html`]); grids of pictures in one PNG ([`grid`], [`encode_png`]).
//!
//! ```
//! use lapflow_report::{Block, Report, Section, render_html};
//!
//! let section = Section { title: "Words".into(), blocks: vec![Block::Text("a < b".into())] };
//! let title = "A run".to_string();
//! let page = render_html(&Report { title, subtitle: String::new(), sections: vec![section] });
//! assert!(page.contains("a &lt; b"));
//! ```

mod axis;
mod chart;
mod grid;
mod html;

pub use grid::{encode_png, grid};
pub use html::render_html;

use image::DynamicImage;

/// A page.
pub struct Report {
    /// The page's heading.
    pub title: String,
    /// One line under it: what ran, when, with which seed.
    pub subtitle: String,
    /// Its parts, in order.
    pub sections: Vec<Section>,
}

/// A titled part of a page.
pub struct Section {
    /// Its heading, which the navigation names too.
    pub title: String,
    /// What stands under it, in order.
    pub blocks: Vec<Block>,
}

/// What a section is made of. Curves and bars stand side by side where there is room.
pub enum Block {
    /// A paragraph.
    Text(String),
    /// The numbers to see first, each with its name.
    Facts(Vec<Fact>),
    /// Rows of pictures.
    Figure(Figure),
    /// A chart of lines.
    Curves(Curves),
    /// A chart of bars.
    Bars(Bars),
    /// A table.
    Table(Table),
}

/// A number (or a word) and its name.
pub struct Fact {
    /// The name.
    pub name: String,
    /// The number, as it is printed.
    pub value: String,
}

/// Rows of pictures; the columns of all rows are aligned, to compare what stands below each other.
pub struct Figure {
    /// What it shows.
    pub caption: String,
    /// The rows, top to bottom.
    pub rows: Vec<PictureRow>,
    /// How pictures are brought to the size of their column.
    pub zoom: Zoom,
}

/// Pictures beside their common label.
pub struct PictureRow {
    /// The label.
    pub label: String,
    /// Left to right.
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
    /// What they show.
    pub caption: String,
    /// Name of the horizontal axis, with its unit.
    pub x_label: String,
    /// Name of the vertical axis, with its unit.
    pub y_label: String,
    /// How the vertical axis maps values to places.
    pub y_scale: Scale,
    /// Width of the moving mean as a share of the x axis; 0 draws the points as they are.
    pub smoothing: f64,
    /// The lines.
    pub series: Vec<Series>,
}

/// A named line. Points that are not finite (or not positive, on a logarithmic axis) leave a gap
/// and are counted in the legend.
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// (x, y) with ascending x.
    pub points: Vec<(f64, f64)>,
}

/// How an axis maps values to places.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// Equal steps for equal differences.
    Linear,
    /// Equal steps for equal ratios.
    Log,
}

/// Non-negative quantities as bars from a common zero.
pub struct Bars {
    /// What they show.
    pub caption: String,
    /// Top to bottom.
    pub bars: Vec<Bar>,
}

/// One quantity.
pub struct Bar {
    /// Its name.
    pub label: String,
    /// The bar's length, in the unit that all bars of a chart share.
    pub value: f64,
    /// The quantity in words, with its unit.
    pub text: String,
}

/// A table whose first column names its rows. Columns of numbers are set flush right.
pub struct Table {
    /// What it shows.
    pub caption: String,
    /// Names of the columns.
    pub header: Vec<String>,
    /// Rows of at most as many cells as the header has.
    pub rows: Vec<Vec<String>>,
}
