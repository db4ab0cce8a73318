//! Named parameters in creation order: made fresh from a seed, or taken from loaded weights.
//!
//! A network's constructor takes a [`Scope`] and asks it for each parameter by name and shape.
//! The same constructor therefore serves training from scratch ([`Params::init`]), resuming and
//! sampling ([`Params::load`]). Names follow PyTorch's convention and weights are `(out, in)`.

use crate::error::{ModelError, Result};
use candle_core::{DType, Device, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, Uniform};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// Every parameter of a network, in the order in which its constructor asked for them.
pub struct Params {
    vars: Vec<(String, Var)>,
    by_name: HashMap<String, usize>,
    origin: Origin,
    device: Device,
    dtype: DType,
    frozen: bool,
}

/// Where parameter values come from.
enum Origin {
    Seed(Box<ChaCha8Rng>),
    Weights(BTreeMap<String, Tensor>),
}

/// How a fresh parameter is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// N(0, std^2).
    Normal(f64),
    /// U(-bound, bound).
    Uniform(f64),
    /// Xavier (Glorot) uniform over a weight `(out, in, ...)`, extra axes joining the fans.
    Xavier,
    /// PyTorch's default for linear and conv weights: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
    FanIn,
}

impl Params {
    /// Builds a network with fresh parameters drawn from `seed`.
    ///
    /// Draws are f32 on the host whatever the device, so every device starts from equal values.
    pub fn init<T>(
        seed: u64,
        dtype: DType,
        device: &Device,
        build: impl FnOnce(&Scope) -> Result<T>,
    ) -> Result<(T, Self)> {
        let origin = Origin::Seed(Box::new(ChaCha8Rng::seed_from_u64(seed)));
        Self::build(origin, dtype, device, false, build)
    }

    /// Builds a network from `weights`; absent, surplus and misshapen keys are errors that name them.
    pub fn load<T>(
        weights: BTreeMap<String, Tensor>,
        dtype: DType,
        device: &Device,
        build: impl FnOnce(&Scope) -> Result<T>,
    ) -> Result<(T, Self)> {
        let (net, params) = Self::build(Origin::Weights(weights), dtype, device, false, build)?;
        params.all_used()?;
        Ok((net, params))
    }

    /// Like [`Params::load`] for a network that is not trained: its parameters are plain tensors,
    /// so no operation is recorded for a backward pass and activations are freed as it runs. Values
    /// that are not finite are an error too.
    pub fn frozen<T>(
        weights: BTreeMap<String, Tensor>,
        dtype: DType,
        device: &Device,
        build: impl FnOnce(&Scope) -> Result<T>,
    ) -> Result<T> {
        let (net, params) = Self::build(Origin::Weights(weights), dtype, device, true, build)?;
        params.all_used()?;
        Ok(net)
    }

    fn all_used(&self) -> Result<()> {
        match &self.origin {
            Origin::Weights(rest) if !rest.is_empty() => Err(ModelError::UnusedKeys {
                count: rest.len(),
                first: rest.keys().next().cloned().unwrap_or_default(),
            }),
            _ => Ok(()),
        }
    }

    fn build<T>(
        origin: Origin,
        dtype: DType,
        device: &Device,
        frozen: bool,
        build: impl FnOnce(&Scope) -> Result<T>,
    ) -> Result<(T, Self)> {
        let params = Rc::new(RefCell::new(Self {
            vars: Vec::new(),
            by_name: HashMap::new(),
            origin,
            device: device.clone(),
            dtype,
            frozen,
        }));
        let net = build(&Scope { prefix: String::new(), params: params.clone() })?;
        let params = Rc::try_unwrap(params)
            .map_err(|_| ModelError::config("model", "a layer kept its parameter scope"))?
            .into_inner();
        Ok((net, params))
    }

    /// Names and variables in creation order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.vars.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// The variable called `name`.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.by_name.get(name).map(|&i| &self.vars[i].1)
    }

    /// How many scalars all parameters hold.
    pub fn count(&self) -> usize {
        self.vars.iter().map(|(_, var)| var.elem_count()).sum()
    }

    fn request(&mut self, name: String, shape: &[usize], init: Init) -> Result<Tensor> {
        let value = match &mut self.origin {
            Origin::Seed(rng) => draw(rng, shape, init)?.to_device(&self.device)?,
            Origin::Weights(map) => {
                let found = map.remove(&name).ok_or_else(|| ModelError::MissingKey {
                    key: name.clone(),
                    expected: shape.to_vec(),
                })?;
                if found.dims() != shape {
                    return Err(ModelError::KeyShape {
                        key: name,
                        expected: shape.to_vec(),
                        actual: found.dims().to_vec(),
                    });
                }
                if self.frozen && !is_finite(&found)? {
                    return Err(ModelError::NotFinite { key: name });
                }
                found.to_device(&self.device)?
            }
        };
        let value = value.to_dtype(self.dtype)?;
        if self.frozen {
            return Ok(value);
        }
        let var = Var::from_tensor(&value)?;
        let tensor = var.as_tensor().clone();
        self.by_name.insert(name.clone(), self.vars.len());
        self.vars.push((name, var));
        Ok(tensor)
    }
}

/// A place in the parameter tree, e.g. `blocks.3.attn`.
pub struct Scope {
    prefix: String,
    params: Rc<RefCell<Params>>,
}

impl Scope {
    /// The child scope `name`.
    pub fn at(&self, name: impl std::fmt::Display) -> Scope {
        Scope { prefix: self.name(name), params: self.params.clone() }
    }

    /// The parameter `name` of `shape`: drawn by `init`, or loaded.
    ///
    /// # Errors
    /// When the weights lack the key or hold it in another shape.
    pub fn get(&self, name: &str, shape: impl AsRef<[usize]>, init: Init) -> Result<Tensor> {
        self.params.borrow_mut().request(self.name(name), shape.as_ref(), init)
    }

    /// The device of the parameters.
    pub fn device(&self) -> Device {
        self.params.borrow().device.clone()
    }

    /// The dtype of the parameters.
    pub fn dtype(&self) -> DType {
        self.params.borrow().dtype
    }

    fn name(&self, name: impl std::fmt::Display) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }
}

fn is_finite(x: &Tensor) -> Result<bool> {
    let values = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.iter().all(|value| value.is_finite()))
}

fn draw(rng: &mut impl Rng, shape: &[usize], init: Init) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let receptive: usize = shape.iter().skip(2).product();
    let fan_in = shape.get(1).copied().unwrap_or(1) * receptive;
    let fan_out = shape.first().copied().unwrap_or(1) * receptive;
    let mut uniform = |bound: f64| -> Result<Vec<f32>> {
        let range = Uniform::new_inclusive(-bound as f32, bound as f32)
            .map_err(|e| ModelError::config("model", e.to_string()))?;
        Ok((0..count).map(|_| range.sample(&mut *rng)).collect())
    };
    let values = match init {
        Init::Zeros => vec![0f32; count],
        Init::Ones => vec![1f32; count],
        Init::Uniform(bound) => uniform(bound)?,
        Init::FanIn => uniform((fan_in as f64).sqrt().recip())?,
        Init::Xavier => uniform((6.0 / (fan_in + fan_out) as f64).sqrt())?,
        Init::Normal(std) => {
            let normal = |z: f32| z * std as f32;
            (0..count).map(|_| normal(StandardNormal.sample(&mut *rng))).collect()
        }
    };
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}
