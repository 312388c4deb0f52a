//! The bridge: gradients, errors and ownership.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tch::{Kind, Tensor};
use tch_ext::cuda::here;
use tch_ext::{Function, Saved, attach, check_gradients};

/// `x ↦ x²`, counting how many of its states are alive.
struct Square(Tensor, Arc<AtomicUsize>);

impl Function for Square {
    fn backward(&mut self, g: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
        vec![g[0].as_ref().map(|g| g * &self.0 * 2.0)]
    }
}

impl Drop for Square {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

fn square(x: &Tensor, alive: &Arc<AtomicUsize>) -> Tensor {
    alive.fetch_add(1, Ordering::SeqCst);
    let y = tch::no_grad(|| x * x);
    attach(&[&y], &[x], Square(x.detach(), alive.clone())).unwrap().remove(0)
}

fn leaf(n: i64) -> Tensor {
    Tensor::randn([n], (Kind::Double, here())).set_requires_grad(true)
}

#[test]
fn gradients_agree_with_differences_also_when_used_twice() {
    let alive = Arc::default();
    let x = leaf(5);
    assert!(check_gradients(&[x.detach()], |t| square(&t[0], &alive)) < 1e-6);
    // A diamond: x feeds two nodes, whose outputs meet.
    let worst = check_gradients(&[x], |t| square(&t[0], &alive) * square(&square(&t[0], &alive), &alive));
    assert!(worst < 1e-5, "{worst}");
}

#[test]
fn a_wrong_backward_is_seen_by_the_checker() {
    struct Wrong;
    impl Function for Wrong {
        fn backward(&mut self, g: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
            vec![g[0].as_ref().map(|g| g * 1.9)]
        }
    }
    let worst = check_gradients(&[leaf(3)], |t| {
        let y = tch::no_grad(|| &t[0] * 2.0);
        attach(&[&y], &[&t[0]], Wrong).unwrap().remove(0)
    });
    assert!(worst > 1e-2);
}

#[test]
fn states_are_dropped_after_backward_without_grad_and_with_the_graph() {
    let alive = Arc::<AtomicUsize>::default();
    let count = || alive.load(Ordering::SeqCst);
    let x = leaf(4);
    let y = square(&x, &alive);
    assert_eq!(count(), 1);
    y.sum(Kind::Double).backward();
    assert_eq!(count(), 0, "freed by backward although y lives");
    drop(square(&x, &alive));
    assert_eq!(count(), 0, "freed with the graph");
    let _y = tch::no_grad(|| square(&x, &alive));
    let _z = square(&x.detach(), &alive);
    assert_eq!(count(), 0, "nothing is kept where no gradient is wanted");
}

#[test]
fn a_second_backward_and_faulty_functions_give_errors() {
    struct Faulty(u8);
    impl Function for Faulty {
        fn backward(&mut self, _: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
            match self.0 {
                0 => panic!("planted"),
                1 => vec![],
                _ => vec![Some(Tensor::ones([7], (Kind::Double, here())))],
            }
        }
    }
    let alive = Arc::default();
    let x = leaf(4);
    let y = square(&x, &alive).sum(Kind::Double);
    y.backward();
    assert!(y.f_backward().unwrap_err().to_string().contains("already freed"));
    for (fault, words) in [(0, "planted"), (1, "0 gradients for 1"), (2, "invalid gradient")] {
        let y = attach(&[&x.detach()], &[&x], Faulty(fault)).unwrap().remove(0);
        let error = y.sum(Kind::Double).f_backward().unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

/// Gradients of gradients would lack what our nodes add to them.
#[test]
fn a_gradient_that_is_to_have_a_gradient_is_refused() {
    let alive = Arc::default();
    let x = leaf(4);
    let y = square(&x, &alive).sum(Kind::Double);
    let error = Tensor::f_run_backward(&[&y], &[&x], true, true).unwrap_err().to_string();
    assert!(error.contains("differentiated twice"), "{error}");
    let again = Tensor::f_run_backward(&[&y], &[&x], false, false).unwrap();
    assert_eq!(again[0], x.detach() * 2.0);
}

/// A backward that runs a graph of its own does so whatever else happens.
#[test]
fn a_backward_may_run_another() {
    struct Nested(Tensor, Arc<AtomicUsize>);
    impl Function for Nested {
        fn backward(&mut self, g: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
            let x = self.0.detach().set_requires_grad(true);
            tch::with_grad(|| square(&x, &self.1).sum(Kind::Double).backward());
            vec![g[0].as_ref().map(|g| g * x.grad())]
        }
    }
    let alive = Arc::<AtomicUsize>::default();
    let x = leaf(4);
    let y = tch::no_grad(|| &x * &x);
    let y = attach(&[&y], &[&x], Nested(x.detach(), alive)).unwrap().remove(0);
    y.sum(Kind::Double).backward();
    assert_eq!(x.grad(), x.detach() * 2.0);
}

/// Through any handle, by libtorch or by us.
#[test]
fn a_saved_tensor_is_found_as_it_was_or_not_at_all() {
    let changes: [fn(&mut Tensor); 3] = [
        |t| drop(t.view(-1).narrow(0, 1, 2).fill_(0.0)),
        |t| *t += 1.0f64,
        |t| tch_ext::elements_mut::<f64>(t).unwrap()[0] = 5.0,
    ];
    for change in changes {
        let mut x = Tensor::randn([4], (Kind::Double, tch::Device::Cpu));
        let (saved, copy) = (Saved::new(x.detach()), Saved::new(x.copy()));
        assert_eq!(saved.get(), &x);
        change(&mut x);
        for saved in [saved.share(), saved] {
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| saved.get().numel())).is_err());
        }
        assert_eq!(copy.get().numel(), 4);
    }
}

#[test]
fn long_chains_are_walked_and_freed_without_overflow() {
    let alive = Arc::<AtomicUsize>::default();
    let x = Tensor::ones([1], (Kind::Double, here())).set_requires_grad(true);
    let mut y = x.shallow_clone();
    for _ in 0..20_000 {
        y = square(&y, &alive);
    }
    drop(y);
    assert_eq!(alive.load(Ordering::SeqCst), 0);
}
